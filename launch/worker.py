"""Executed by a job in each of its tasks: ``python -m trainer`` on a frozen config, or a comparison.

The process starts in the directory of the code, so that this code is imported before any other. It then changes to
the directory in which the user launched the sweep, so that relative paths in the config keep their meaning.
"""

import os
import runpy
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit import JobEnvironment
from submitit.core.utils import JobPaths
from submitit.helpers import DelayedSubmission

from launch.records import record_exit, write_job
from launch.snapshot import plugin_paths
from trainer.rundir.provenance import CODE
from trainer.rundir.status import PREEMPTED
from trainer.signals import StopSignal

STRAGGLER_SECONDS = 60
"""Once the first task of a run has ended, the others are killed after this time."""


def execute(cwd: Path, module: str, arguments: Sequence[str]) -> None:
    """Executes a module as ``python -m`` does, and exits with its exit code.

    Stop signals stay blocked until the module opens its `StopSignal`, so that none is lost while it imports torch.

    Args:
        cwd: the directory to execute it in; plugins there can be imported, unless the snapshot has a copy.
        module: name of the module.
        arguments: of its command line.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, StopSignal.SIGNALS)
    os.chdir(cwd)
    first, last = [str(CODE), *plugin_paths()], str(cwd)
    sys.path[:] = [*first, *sys.path, last]
    # processes that it starts anew, as comparisons do, must not look into the working directory first either
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([*first, *filter(None, [os.environ.get("PYTHONPATH")]), last])
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def restart_count() -> int:
    """Number of times that Slurm has restarted this job, for whatever reason."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


@dataclass(frozen=True)
class Task:
    """A job for submitit, which pickles it and calls it in each task."""

    run: Path
    jobs: Path
    """The directory of the sweep's jobs."""
    cwd: Path
    command: list[str]
    """A module and its arguments."""
    tasks: int
    """Processes of the job."""
    max_requeues: int

    def __call__(self) -> None:
        """Executes the command in this task of the job, unless the job was restarted too often."""
        signal.pthread_sigmask(signal.SIG_BLOCK, StopSignal.SIGNALS)
        environment = JobEnvironment()
        if restart_count() > self.max_requeues:
            sys.exit(PREEMPTED)
        if environment.global_rank == 0:
            write_job(self.run, environment.job_id, restart_count())
        execute(self.cwd, self.command[0], self.command[1:])

    def directories(self) -> list[Path]:
        """The run directory, alone."""
        return [self.run]

    def record_exit(self, job: str, code: int) -> bool:
        """Writes into status.json how the job ended.

        Args:
            job: id of the job.
            code: its exit code.

        Returns:
            Whether to start it again.
        """
        logs = [JobPaths(self.jobs, job, rank).stdout for rank in range(self.tasks)]
        return record_exit(self.run, code, logs, restart_count(), self.max_requeues)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit requeues if a signal arrives before `__call__` blocks it: the same task."""
        return DelayedSubmission(self)


def stop_with_launcher() -> None:
    """Has this process stopped, with a checkpoint, when the launcher that holds its standard input is gone."""

    def wait() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.pthread_sigmask(signal.SIG_BLOCK, StopSignal.SIGNALS)  # in the thread, too, for good
    threading.Thread(target=wait, name="launcher", daemon=True).start()


if __name__ == "__main__":
    stop_with_launcher()
    execute(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
