"""What a job executes in each of its tasks: ``python -m trainer`` on a frozen config, or a comparison.

This process was started in the directory of the code, so that the code is found there first. It then goes to where
the user launched the sweep, so that relative paths in the config mean what they meant there.
"""

import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit import JobEnvironment
from submitit.helpers import DelayedSubmission

from trainer.rundir.files import atomic_write_text
from trainer.rundir.status import PREEMPTED
from trainer.signals import StopSignal

JOB = "job.json"
"""In a run directory: which job trains there, and how often it was started again."""


def execute(cwd: Path, module: str, arguments: Sequence[str]) -> None:
    """Executes a module to its end, and leaves with its exit code.

    A signal that comes before the trainer can take it, while it imports torch, waits until then.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, StopSignal.SIGNALS)
    os.chdir(cwd)
    sys.path.append(str(cwd))  # plugins that are not part of the code
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def write_job(run: Path, job: str, restarts: int) -> None:
    atomic_write_text(run / JOB, json.dumps({"job": job, "restarts": restarts, "time": time.time()}))


def read_job(run: Path) -> dict[str, Any]:
    """What `write_job` wrote; empty before the first start."""
    try:
        return json.loads((run / JOB).read_text())
    except (OSError, ValueError):
        return {}


def restart_count() -> int:
    """How often Slurm has started this job again, for whatever reason."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


@dataclass(frozen=True)
class Task:
    """A job for submitit, called in each of its tasks."""

    run: Path
    cwd: Path
    command: list[str]
    """A module and its arguments."""
    tasks: int
    max_requeues: int

    def __call__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, StopSignal.SIGNALS)
        environment = JobEnvironment()
        if restart_count() > self.max_requeues:
            sys.exit(PREEMPTED)
        if environment.global_rank == 0:
            write_job(self.run, environment.job_id, restart_count())
        execute(self.cwd, self.command[0], self.command[1:])

    def checkpoint(self) -> DelayedSubmission:
        """For submitit, should a signal come before `__call__` holds it."""
        return DelayedSubmission(self)


if __name__ == "__main__":
    execute(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
