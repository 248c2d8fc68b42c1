"""After all tasks of a job have ended: is the run to be started again?

    python -m launch.on_exit JOBS CODE

is the last command of a job's script on Slurm, executed once, on the job's first node. The code is srun's: the
highest of all tasks, and 128 + N for one that signal N ended.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from submitit.core.utils import JobPaths
from submitit.helpers import DelayedSubmission

from launch.worker import Task, read_job, restart_count
from trainer.rundir.logs import last_error, last_lines
from trainer.rundir.status import CRASHED, FINISHED, PREEMPTED, read_status, write_status

TRIES = 5
"""Of a requeue, while Slurm's controller does not answer."""


def record_exit(run: Path, code: int, logs: Sequence[Path], restarts: int, limit: int) -> bool:
    """Writes into status.json how a start of a run ended, where the run could not do it itself.

    Args:
        run: the run directory.
        code: the highest exit code of its tasks.
        logs: of its tasks.
        restarts: how often the run was started again so far.
        limit: how often it may be.

    Returns:
        Whether to start it again.
    """
    status = read_status(run)
    if status.get("state") == "finished":
        return False
    if code < PREEMPTED:
        told = status.get("state") == "failed" and status["time"] >= read_job(run).get(
            "time", 0
        )  # in this start
        set_status(run, "failed", status["error"] if told else last_error_line(logs))
        return False
    reason = str(status.get("error") or "stopped") if code == PREEMPTED else killed(code)
    if restarts < limit:
        set_status(run, "preempted", f"{reason}; restart {restarts + 1} of at most {limit}")
        return True
    if limit:
        set_status(run, "failed", f"{reason}; launch.max_requeues={limit} is used up")
    else:
        set_status(run, "preempted", reason)
    return False


def killed(code: int) -> str:
    names = {128 + number: number.name for number in signal.Signals}
    return f"a task was ended by {names[code]}" if code in names else f"a task ended with exit code {code}"


def last_error_line(logs: Sequence[Path]) -> str:
    """The last error in the first log that has one; or else the last line that a task has written."""
    tails = [last_lines(log) for log in logs]
    if errors := [error for lines in tails if (error := last_error(lines))]:
        return errors[0]
    output = [[line for line in lines if not line.startswith(("srun: ", "slurmstepd"))] for lines in tails]
    return next((lines[-1] for lines in (*output, *tails) if lines), f"see {logs[0]}")


def set_status(run: Path, state: str, reason: str) -> None:
    """Sets state and reason in status.json, and keeps what it says of the training."""
    status = read_status(run)
    kept = {key: status[key] for key in ("step", "metrics", "primary", "declared") if key in status}
    try:
        write_status(run, state, **kept, error=reason)
    except OSError as error:
        print(f"status.json in {run} cannot be written: {error.strerror}", file=sys.stderr)


def requeue(job: str) -> None:
    """Puts this job back into Slurm's queue, which also ends this process."""
    for _ in range(TRIES):
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        if done.returncode == 0:
            return
        time.sleep(10)
    print(f"{job} cannot be put back into the queue: {done.stderr.strip()}", file=sys.stderr)


def main(folder: Path, code: int) -> int:
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{index}" if array else os.environ["SLURM_JOB_ID"]
    task = DelayedSubmission.load(JobPaths(folder, job).submitted_pickle).function
    assert isinstance(task, Task)
    logs = [JobPaths(folder, job, rank).stdout for rank in range(task.tasks)]
    if record_exit(task.run, code, logs, restart_count(), task.max_requeues):
        requeue(job)
    return FINISHED if read_status(task.run).get("state") == "finished" else CRASHED


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
