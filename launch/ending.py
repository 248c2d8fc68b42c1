"""After all tasks of a job have ended: is the run to be started again?

    python -m launch.ending JOBS

is the last command of a job's script on Slurm, executed once, on the job's first node.
"""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from submitit.core.utils import JobPaths
from submitit.helpers import DelayedSubmission

from launch.task import Task, restart_count
from trainer.status import CRASHED, FINISHED, PREEMPTED, USER_ERROR, read_status, write_status

TRIES = 5
"""Of a requeue, while Slurm's controller does not answer."""


def conclude(run: Path, codes: Sequence[int | None], logs: Sequence[Path], restarts: int, limit: int) -> bool:
    """Writes into status.json how a start of a run ended, where the run could not do it itself.

    Args:
        run: the run directory.
        codes: exit code of each task; None of one that was killed. The first to end comes first.
        logs: of the same tasks.
        restarts: how often the run was started again so far.
        limit: how often it may be.

    Returns:
        Whether to start it again.
    """
    status = read_status(run)
    if status.get("state") == "finished":
        return False
    again, reason = judge(codes, logs, str(status.get("error") or "stopped"))
    if not again:
        mark(run, "failed", reason)
    elif restarts < limit:
        mark(run, "preempted", f"{reason}; restart {restarts + 1} of at most {limit}")
        return True
    elif limit == 0:
        mark(run, "preempted", reason)
    else:
        mark(run, "failed", f"{reason}; launch.max_requeues={limit} is used up")
    return False


def judge(codes: Sequence[int | None], logs: Sequence[Path], stopped: str) -> tuple[bool, str]:
    """Whether to start again, and why.

    A task that was killed takes the others down with it, whose errors then say nothing.
    """
    if USER_ERROR in codes:
        return False, last_words(logs[codes.index(USER_ERROR)], "error: ")
    if None in codes:
        return True, "a task was killed"
    failed = [code for code in codes if code not in (FINISHED, PREEMPTED)]
    if failed:
        return False, last_words(logs[codes.index(failed[0])], "crashed: ")
    return True, stopped


def last_words(log: Path, mark: str) -> str:
    """The last line of a log that begins with a mark, without it; or else its last line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 2**16))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        lines = []
    lines = [line.strip() for line in lines if line.strip()]
    marked = [line.removeprefix(mark) for line in lines if line.startswith(mark)]
    return (marked or lines or [f"see {log}"])[-1]


def mark(run: Path, state: str, reason: str) -> None:
    """Sets state and reason in status.json, and keeps what it says of the training."""
    status = read_status(run)
    kept = {key: status[key] for key in ("step", "metrics", "primary") if key in status}
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


def main(folder: Path) -> int:
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{index}" if array else os.environ["SLURM_JOB_ID"]
    task = DelayedSubmission.load(JobPaths(folder, job).submitted_pickle).function
    assert isinstance(task, Task)
    paths = [JobPaths(folder, job, rank) for rank in range(task.tasks)]
    paths.sort(key=ended_at)
    codes = [result(path.result_pickle) for path in paths]
    for path in paths:
        path.result_pickle.unlink(missing_ok=True)
    logs = [path.stdout for path in paths]
    if conclude(task.run, codes, logs, restart_count(), task.max_requeues):
        requeue(job)
    return FINISHED if read_status(task.run).get("state") == "finished" else CRASHED


def ended_at(paths: JobPaths) -> float:
    return paths.result_pickle.stat().st_mtime if paths.result_pickle.exists() else 0.0


def result(path: Path) -> int | None:
    """What submitit wrote down of a task: its exit code; CRASHED after an exception; None if it wrote nothing."""
    try:
        outcome, value = pickle.loads(path.read_bytes())
    except (OSError, EOFError, pickle.UnpicklingError):
        return None
    return value if outcome == "success" else CRASHED


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
