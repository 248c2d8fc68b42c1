"""Several runs as one Slurm job: a process each, side by side, with equal shares of the job's cores and one GPU."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from submitit import JobEnvironment
from submitit.helpers import DelayedSubmission

from launch.options import SlurmOptions
from launch.pool import Pool
from launch.records import read_job, record_exit
from launch.start import Share, core_shares
from launch.sweep_dir import Sweep, SweepRun, read_sweep
from launch.worker import restart_count
from trainer.rundir.status import PREEMPTED, read_status
from trainer.signals import StopSignal


@dataclass(frozen=True)
class Pack:
    """A job for submitit, which pickles it and calls it in the job's only task."""

    sweep: Path
    """The sweep's directory."""
    names: list[str]
    """Of the runs."""

    def __call__(self) -> None:
        """Executes the runs that have not ended, unless the job was restarted too often."""
        signal.pthread_sigmask(signal.SIG_BLOCK, StopSignal.SIGNALS)
        job = JobEnvironment().job_id
        sweep, runs = self._open(job)
        if restart_count() > sweep.options.max_requeues:
            sys.exit(PREEMPTED)
        starts = [(run, next_restart(sweep.directory(run), job)) for run in runs]
        assert isinstance(sweep.options, SlurmOptions)
        shares = shares_of_job(sweep.options, len(runs))
        sys.exit(Pool(sweep, starts, shares).execute())

    def checkpoint(self) -> DelayedSubmission:
        """What submitit requeues if a signal arrives before `__call__` blocks it: the same job."""
        return DelayedSubmission(self)

    def directories(self) -> list[Path]:
        """The run directories."""
        return [self.sweep / name for name in self.names]

    def record_exit(self, job: str, code: int) -> bool:
        """Writes into each status.json how the run ended, where the job was stopped before its run had ended.

        Args:
            job: id of the job.
            code: its exit code.

        Returns:
            Whether to start the job again, for one of them at least.
        """
        sweep, runs = self._open(job)
        again = [
            record_exit(
                sweep.directory(run),
                PREEMPTED if read_status(sweep.directory(run)).get("state") == "preempted" else code,
                [*sweep.logs(run), sweep.job_log(job)],
                max(restart_count(), next_restart(sweep.directory(run), job) - 1),
                sweep.options.max_requeues,
            )
            for run in runs
        ]
        return any(again)

    def _open(self, job: str) -> tuple[Sweep, list[SweepRun]]:
        """The sweep, and those runs of the job that are still the job's and have not ended in it."""
        sweep = read_sweep(self.sweep)
        runs = [run for run in sweep.runs if run.name in self.names]
        for run in runs:
            if job not in run.jobs:  # the job has started before its id was noted
                run.jobs.append(job)
        # one that has failed may have been submitted again since, while the others of the job were training
        own = [run for run in runs if run.jobs[-1] == job]
        return sweep, [run for run in own if not has_ended(sweep.directory(run), job)]


def shares_of_job(options: SlurmOptions, runs: int) -> list[Share]:
    """The shares of a job's runs, each as large as if the job were full.

    Cores are given to them where this process runs on those of the job alone. Where Slurm confines no job to its own,
    they would be those of other jobs, too, and a run has its number of threads only.
    """
    cores = sorted(os.sched_getaffinity(0))
    shares = core_shares(cores, options.runs_per_job, options.cpus_per_task // options.runs_per_job)
    if len(cores) == os.cpu_count() and len(cores) > options.cpus_per_task:
        shares = [Share(share.environment) for share in shares]
    return shares[:runs]


def has_ended(run: Path, job: str) -> bool:
    """Whether a run has finished, or has failed in this job."""
    status, record = read_status(run), read_job(run)
    if record is None or record.job != job or status.get("time", 0) < record.time:
        return status.get("state") == "finished"
    return status.get("state") in ("finished", "failed")


def next_restart(run: Path, job: str) -> int:
    """The number of the run's next start in a job, from 0; Slurm's restarts count even if none of them came to it."""
    record = read_job(run)
    return max(restart_count(), record.restarts + 1 if record and record.job == job else 0)
