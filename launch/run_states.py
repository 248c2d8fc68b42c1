"""The state of each run of a sweep, from its status.json, its job.json and the queue."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import slurm_executor
from launch.records import JobRecord, read_job
from launch.sweep_dir import Sweep, SweepRun, executor_of
from trainer.errors import UserError
from trainer.rundir.status import process_is_alive, read_status

ACTIVE = ("queued", "starting", "running")
"""The states of a run that has not ended."""


@dataclass(frozen=True)
class RunState:
    """A run at the time of asking."""

    name: str
    state: str
    """One of `trainer.rundir.status.STATES`."""
    job: str | None
    """Id of its newest job; None before it is submitted."""
    slurm: str | None
    """Slurm's own word for the state of the job, if Slurm knows the job."""
    step: int | None
    """Optimizer steps until the last write of status.json."""
    metric: str | None
    """Name of the metric that picks the best checkpoint."""
    value: float | None
    """The metric's value in the last evaluation."""
    restarts: int
    reason: str | None
    """Why the run is in this state: an error, or what the queue waits for."""
    log: Path | None
    """The output of its first process, or of the script of a job that failed before it."""

    @property
    def is_active(self) -> bool:
        """Whether the run waits in the queue, starts or runs."""
        return self.state in ACTIVE


@dataclass(frozen=True)
class QueueEntry:
    """What the queue knows of the newest job of a run."""

    queue: tuple[str, str] | None
    """State and reason, in Slurm's words; None if the job is not in the queue."""
    accounting: str | None = None
    """Final state in Slurm's accounting, for a job that is not in the queue."""

    @property
    def slurm_state(self) -> str | None:
        """State in Slurm's words, from the queue or else from the accounting; None if Slurm does not know the job."""
        return self.queue[0] if self.queue else self.accounting


def run_states(sweep: Sweep) -> tuple[list[RunState], str | None]:
    """The states of all runs, in the order of their numbers, and the error if the queue does not answer."""
    if sweep.options.name == "local":
        return [state_of(sweep, run, local_entry(sweep, run)) for run in sweep.runs], None
    ids = [run.jobs[-1] for run in sweep.runs if run.jobs]
    try:
        # Asked before any status.json is read: a job that ends in between has written its status by then.
        queue = slurm_executor.queued(ids)
    except UserError as error:
        return [state_of(sweep, run, None) for run in sweep.runs], str(error)
    left = [job for job in ids if job not in queue]
    accounting = slurm_executor.ended(left) if left else {}
    entries = [
        QueueEntry(queue.get(run.jobs[-1]), accounting.get(run.jobs[-1])) if run.jobs else QueueEntry(None)
        for run in sweep.runs
    ]
    return [state_of(sweep, run, entry) for run, entry in zip(sweep.runs, entries, strict=True)], None


def local_entry(sweep: Sweep, run: SweepRun) -> QueueEntry:
    """The queue entry of a run that a process on this machine executes."""
    job, status = read_files(sweep.directory(run))
    if not run.jobs or not process_is_alive(*executor_of(run.jobs[-1])):
        return QueueEntry(None)
    if job is None or job.job != run.jobs[-1]:
        return QueueEntry(("PENDING", "waiting for a free slot"))
    ended = status.get("state") != "running" and status.get("time", 0) >= job.time
    return QueueEntry(None) if ended else QueueEntry(("RUNNING", ""))


def read_files(run: Path) -> tuple[JobRecord | None, dict[str, Any]]:
    """What job.json and status.json say; where one of them cannot be read, the status is unknown for this reason."""
    try:
        job, status = read_job(run), read_status(run)
        return job, {"state": "unknown", **status} if status else {}
    except UserError as error:
        return None, {"state": "unknown", "error": str(error)}


def state_of(sweep: Sweep, run: SweepRun, entry: QueueEntry | None) -> RunState:
    """The state of a run; the entry is None if the queue does not answer."""
    job, status = read_files(sweep.directory(run))
    newest = run.jobs[-1] if run.jobs else None
    start = job if job and job.job == newest else None
    started = start is not None
    current = start is not None and status.get("time", 0) >= start.time
    cancelled = newest is not None and run.cancelled == newest
    slurm = entry.slurm_state if entry and sweep.options.name == "slurm" else None
    if sweep.options.runs_per_job > 1 and current and entry and status.get("state") == "failed":
        entry = QueueEntry(None)  # the run has ended, whatever its job still does for the others
    state, reason = resolve_state(status, entry, started=started, current=current, cancelled=cancelled)
    log = sweep.logs(run)[0] if newest else None
    if newest and state == "failed" and not started:  # what there is to read was written by the job's script
        log = sweep.job_log(newest)
        reason = f"{reason}: see {log}" if log.exists() else reason
    metric = status.get("primary")
    return RunState(
        name=run.name,
        state=state,
        job=newest,
        slurm=slurm,
        step=status.get("step"),
        metric=metric,
        value=(status.get("metrics") or {}).get(metric),
        restarts=start.restarts if start else 0,
        reason=reason,
        log=log,
    )


def resolve_state(
    status: Mapping[str, Any], entry: QueueEntry | None, *, started: bool, current: bool, cancelled: bool
) -> tuple[str, str | None]:
    """The state of a run and the reason for it.

    Args:
        status: content of status.json.
        entry: of the run's newest job; None if the queue does not answer.
        started: whether this job has started.
        current: whether status.json was written since its last start.
        cancelled: whether ``python -m launch cancel`` cancelled it.
    """
    recorded, error = status.get("state"), status.get("error")
    if recorded == "finished":
        return "finished", None
    if entry is None:
        return "unknown", error
    if entry.queue is not None:
        in_queue, reason = entry.queue
        if in_queue in ("RUNNING", "COMPLETING"):
            running = recorded == "running" and current
            return ("running" if running else "starting"), (error if recorded == "unknown" else None)
        return "queued", (error if started and error else reason)
    if recorded == "unknown":  # another version wrote status.json, or it is damaged
        return "unknown", error
    if recorded == "failed" and started:
        return "failed", error
    if cancelled or (entry.accounting and entry.accounting.startswith("CANCELLED")):
        return "cancelled", error if started else None
    if recorded == "preempted" and started:
        return "preempted", error
    if entry.accounting and not started:
        return "failed", f"Slurm reports {entry.accounting} before the run had started"
    if entry.accounting:
        return "vanished", f"Slurm reports {entry.accounting}"
    return "vanished", "the job left the queue without reporting a result"
