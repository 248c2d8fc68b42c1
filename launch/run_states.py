"""How the runs of a sweep stand, by their own status and by the queue."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.core.utils import JobPaths

from launch import local_executor, slurm_executor
from launch.sweep_dir import Sweep, SweepRun
from launch.worker import read_job
from trainer.errors import UserError
from trainer.rundir.status import process_is_alive, read_status

UNDER_WAY = ("queued", "starting", "running")
ENDED = ("finished", "failed", "preempted", "cancelled", "lost")
STATES = (*UNDER_WAY, *ENDED, "unknown")
"""lost: its job is gone, and nobody has said why; unknown: the queue cannot be asked, or status.json not be read."""


@dataclass(frozen=True)
class RunState:
    """One run, now."""

    name: str
    state: str
    """One of STATES."""
    job: str | None
    slurm: str | None
    """The state by Slurm, where it knows of one."""
    step: int | None
    metric: str | None
    """The name of the metric that picks the best."""
    value: float | None
    restarts: int
    reason: str | None
    log: Path | None
    """Of the first task."""

    @property
    def under_way(self) -> bool:
        return self.state in UNDER_WAY


@dataclass(frozen=True)
class QueueEntry:
    """What is known of the newest job of a run."""

    queue: tuple[str, str] | None
    """State and reason in the queue; None if it is not there."""
    account: str | None = None
    """State by Slurm's accounts, of a job that is not in the queue."""


def run_states(sweep: Sweep) -> tuple[list[RunState], str | None]:
    """All runs in the order of their numbers, and what hinders us from knowing more."""
    if sweep.options.name == "local":
        return [state_of(sweep, run, local_job(sweep, run)) for run in sweep.runs], None
    ids = [run.jobs[-1] for run in sweep.runs if run.jobs]
    try:
        queue = slurm_executor.queued(
            ids
        )  # first: what ends after this has written its status when we read it
    except UserError as error:
        return [state_of(sweep, run, None) for run in sweep.runs], str(error)
    gone = [job for job in ids if job not in queue]
    accounts = slurm_executor.ended(gone) if gone else {}
    jobs = [
        QueueEntry(queue.get(run.jobs[-1]), accounts.get(run.jobs[-1])) if run.jobs else QueueEntry(None)
        for run in sweep.runs
    ]
    return [state_of(sweep, run, job) for run, job in zip(sweep.runs, jobs, strict=True)], None


def local_job(sweep: Sweep, run: SweepRun) -> QueueEntry:
    """In the terms of a queue, a run that a process of this machine executes."""
    directory = sweep.directory(run)
    record, status = read_job(directory), read_status(directory)
    if not run.jobs or not process_is_alive(*local_executor.executor_of(run.jobs[-1])):
        return QueueEntry(None)
    if record.get("job") != run.jobs[-1]:
        return QueueEntry(("PENDING", "its turn comes"))
    over = status.get("state") != "running" and status.get("time", 0) >= record["time"]
    return QueueEntry(None) if over else QueueEntry(("RUNNING", ""))


def state_of(sweep: Sweep, run: SweepRun, job: QueueEntry | None) -> RunState:
    """How a run stands; the job is None if the queue cannot be asked."""
    directory = sweep.directory(run)
    record, status = read_job(directory), read_status(directory)
    newest = run.jobs[-1] if run.jobs else None
    started = newest is not None and record.get("job") == newest
    current = started and status.get("time", 0) >= record["time"]
    cancelled = newest is not None and run.cancelled == newest
    state, reason = resolve_state(status, job, started=started, current=current, cancelled=cancelled)
    primary = status.get("primary")
    in_slurm = job and sweep.options.name == "slurm"
    return RunState(
        name=run.name,
        state=state,
        job=newest,
        slurm=(job.queue[0] if job.queue else job.account) if job and in_slurm else None,
        step=status.get("step"),
        metric=primary,
        value=(status.get("metrics") or {}).get(primary),
        restarts=record["restarts"] if started else 0,
        reason=reason,
        log=JobPaths(sweep.jobs, newest, 0).stdout if newest else None,
    )


def resolve_state(
    status: Mapping[str, Any], job: QueueEntry | None, *, started: bool, current: bool, cancelled: bool
) -> tuple[str, str | None]:
    """State and reason of a run.

    Args:
        status: what status.json says.
        job: None if the queue cannot be asked.
        started: whether the run's newest job has started.
        current: whether status.json was written since it last did.
        cancelled: whether ``python -m launch cancel`` was told to end it.
    """
    said, error = status.get("state"), status.get("error")
    if said == "finished":
        return "finished", None
    if said == "unknown":  # it was written by another version of the code
        return "unknown", error
    if job is None:
        return "unknown", error
    if job.queue is not None:
        where, why = job.queue
        if where in ("RUNNING", "COMPLETING"):
            return ("running" if said == "running" and current else "starting"), None
        return "queued", (error if started and error else why)
    if said == "failed" and started:
        return "failed", error
    if cancelled or (job.account and job.account.startswith("CANCELLED")):
        return "cancelled", error if started else None
    if said == "preempted" and started:
        return "preempted", error
    return "lost", f"Slurm says {job.account}" if job.account else "its job is gone without a word"
