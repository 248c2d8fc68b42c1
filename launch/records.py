"""What a job leaves in a run directory: job.json at each start, and in status.json how the start ended."""

import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import ConfigError, DataError
from trainer.options import Natural, NonNegative, build_dataclass, check_options, options_of, to_dict
from trainer.rundir.files import FORMAT, atomic_write_text, check_format
from trainer.rundir.foreign import parse_json, read_text
from trainer.rundir.logs import last_error, last_lines
from trainer.rundir.status import PREEMPTED, change_state, read_status

JOB = "job.json"
"""In a run directory: the job that trains there, and how many restarts it has had."""

RESTART = "; restart "
"""Between the reason of a stop and the number of the start that follows it."""


@dataclass(frozen=True)
class JobRecord:
    """Content of job.json: the job that trains in a run directory."""

    format: int
    job: str
    """Its id."""
    restarts: Natural
    """Earlier starts of the same job."""
    time: NonNegative
    """Of the start, in seconds since 1970."""


def write_job(run: Path, job: str, restarts: int) -> None:
    """Notes in a run directory that a job starts there.

    Args:
        run: the run directory.
        job: id of the job.
        restarts: earlier starts of the same job.
    """
    record = JobRecord(FORMAT, job, restarts, time.time())
    atomic_write_text(run / JOB, json.dumps(to_dict(record)))


def read_job(run: Path) -> JobRecord | None:
    """The record of `write_job`; None before the first start.

    Raises:
        DataError: another version wrote it, or it is damaged.
    """
    try:
        values = parse_json(read_text(run / JOB))
    except (OSError, ValueError):
        return None
    check_format(values, run / JOB)
    try:
        return build_dataclass(JobRecord, check_options(options_of(JobRecord), values, ""))
    except ConfigError as error:
        raise DataError(f"{run / JOB} is damaged: {str(error)[:200]}; remove it") from None


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
    stopped = str(status.get("error") or "stopped").partition(RESTART)[0]  # it may have been recorded before
    reason = stopped if code == PREEMPTED else describe_death(code)
    if restarts < limit:
        set_status(run, "preempted", f"{reason}{RESTART}{restarts + 1} of at most {limit}")
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
