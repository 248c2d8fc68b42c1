"""After all tasks of a job have ended: record how, and decide whether to start the run again.

    python -m launch.on_exit JOBS CODE

is the last command of a job's script on Slurm, executed once, on the job's first node. CODE is the exit code of srun:
the highest of all tasks, and 128 + N for a task that signal N ended. `launch.local_executor` does the same on this
machine.

The way of a stop signal, from Slurm to the next start:

1. `launch.slurm_executor` asks Slurm for SIGUSR2 ``launch.signal_seconds`` before the time limit; preemption and
   ``scancel`` send SIGTERM. Slurm signals every task of the job.
2. `launch.worker` has the signals blocked while a task starts, so that one that arrives early stays pending.
3. `trainer.signals.StopSignal` unblocks them; its handler only sets a flag.
4. `trainer.training.step_sync`: at the end of a step all ranks learn of the flag in the step's one all-reduce.
5. `trainer.training.loop` has all ranks write a checkpoint, then raises `Preempted`.
6. `trainer.training.run` writes "preempted" into status.json, and the process exits with code 75.
7. This module sees 75 (or 128 + N, if the process was killed), adds the restart to status.json and has Slurm requeue
   the job, up to ``launch.max_requeues`` times.
8. Slurm starts the job again with SLURM_RESTART_COUNT + 1; `trainer.training.run` resumes from the newest checkpoint.
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
from trainer.cli.common import exit_code
from trainer.rundir.logs import last_error, last_lines
from trainer.rundir.status import CRASHED, FINISHED, PREEMPTED, change_state, read_status

REQUEUE_TRIES = 5
REQUEUE_WAIT = 10.0
"""Seconds between two tries, while Slurm's controller does not answer."""


def record_exit(run: Path, code: int, logs: Sequence[Path], restarts: int, limit: int) -> bool:
    """Writes into status.json how a start of a run ended, unless the run has finished.

    Args:
        run: the run directory.
        code: the highest exit code of its tasks.
        logs: the logs of its tasks.
        restarts: how many restarts the run has had.
        limit: how many it may have.

    Returns:
        Whether to start it again.

    Raises:
        DataError: another version of the code wrote job.json.
    """
    status = read_status(run)
    if status.get("state") == "finished":
        return False
    if code < PREEMPTED:
        job = read_job(run)
        is_recorded = status.get("state") == "failed" and (job is None or status.get("time", 0) >= job.time)
        set_status(run, "failed", (is_recorded and status.get("error")) or last_error_line(logs))
        return False
    reason = str(status.get("error") or "stopped") if code == PREEMPTED else describe_death(code)
    if restarts < limit:
        set_status(run, "preempted", f"{reason}; restart {restarts + 1} of at most {limit}")
        return True
    if limit:
        set_status(run, "failed", f"{reason}; reached launch.max_requeues={limit}")
    else:
        set_status(run, "preempted", reason)
    return False


def describe_death(code: int) -> str:
    """An exit code from 76 on in words: the name of the signal, if it stands for one."""
    names = {128 + number: number.name for number in signal.Signals}
    return f"a task was killed by {names[code]}" if code in names else f"a task exited with code {code}"


def last_error_line(logs: Sequence[Path]) -> str:
    """The last error in the first log that has one; otherwise the last line that a task wrote."""
    tails = [last_lines(log) for log in logs]
    errors = [error for tail in tails if (error := last_error(tail))]
    written = [line for tail in tails for line in tail[::-1] if not line.startswith(("srun: ", "slurmstepd"))]
    others = [line for tail in tails for line in tail[::-1]]
    return next(iter([*errors, *written, *others]), f"see {logs[0]}")


def set_status(run: Path, state: str, reason: str) -> None:
    """As `change_state`; a failure of it is a message."""
    try:
        change_state(run, state, reason)
    except OSError as error:
        print(f"cannot write status.json in {run}: {error.strerror}", file=sys.stderr)


def requeue(job: str) -> None:
    """Puts this job back into Slurm's queue, which also ends this process."""
    for _ in range(REQUEUE_TRIES):
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        if done.returncode == 0:
            return
        time.sleep(REQUEUE_WAIT)
    print(f"cannot requeue job {job}: {done.stderr.strip()}", file=sys.stderr)


def main(folder: Path, code: int) -> int:
    """Records the end of this Slurm job, and requeues it if the run is to be started again.

    Args:
        folder: of the sweep's jobs.
        code: exit code of srun.

    Returns:
        `FINISHED` if the run has finished, otherwise `CRASHED`: the exit code of the job.
    """
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{index}" if array else os.environ["SLURM_JOB_ID"]
    task = DelayedSubmission.load(JobPaths(folder, job).submitted_pickle).function
    assert isinstance(task, Task)
    logs = [JobPaths(folder, job, rank).stdout for rank in range(task.tasks)]
    if record_exit(task.run, code, logs, restart_count(), task.max_requeues):
        requeue(job)
    return FINISHED if read_status(task.run).get("state") == "finished" else CRASHED


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(Path(sys.argv[1]), int(sys.argv[2]))))
