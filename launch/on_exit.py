"""After all tasks of a job have ended: record how, and decide whether to start the run again.

    python -m launch.on_exit JOBS CODE

is the last command of a job's script on Slurm, executed once, on the job's first node. CODE is the exit code of srun:
the highest of all tasks, and 128 + N for a task that signal N ended. `launch.pool` does the same for the runs that it
starts, on this machine or side by side in a job.

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
import subprocess
import sys
import time
from pathlib import Path

from submitit.core.utils import JobPaths
from submitit.helpers import DelayedSubmission

from launch.notify import notify_once
from launch.pack import Pack
from launch.worker import Task
from trainer.cli.common import exit_code
from trainer.rundir.status import CRASHED, FINISHED, read_status

REQUEUE_TRIES = 5
REQUEUE_WAIT = 10.0
"""Seconds between two tries, while Slurm's controller does not answer."""


def requeue(job: str) -> None:
    """Puts this job back into Slurm's queue, which also ends this process."""
    for _ in range(REQUEUE_TRIES):
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        if done.returncode == 0:
            return
        time.sleep(REQUEUE_WAIT)
    print(f"cannot requeue job {job}: {done.stderr.strip()}", file=sys.stderr)


def main(folder: Path, code: int) -> int:
    """Records the end of this Slurm job, and requeues it if a run is to be started again.

    Args:
        folder: of the sweep's jobs.
        code: exit code of srun.

    Returns:
        `FINISHED` if its runs have finished, otherwise `CRASHED`: the exit code of the job.
    """
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{index}" if array else os.environ["SLURM_JOB_ID"]
    task = DelayedSubmission.load(JobPaths(folder, job).submitted_pickle).function
    assert isinstance(task, Task | Pack)
    if task.record_exit(job, code):
        requeue(job)
    else:
        notify_once(folder.parent)
    states = {read_status(run).get("state") for run in task.directories()}
    return FINISHED if states <= {"finished"} else CRASHED


if __name__ == "__main__":
    sys.exit(exit_code(lambda: main(Path(sys.argv[1]), int(sys.argv[2]))))
