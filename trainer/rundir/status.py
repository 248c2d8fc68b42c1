"""The state of a run and how it ended: status.json and the exit codes. Imports no torch."""

import errno
import os
import socket
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from trainer import metrics
from trainer.errors import ConfigError, UserError
from trainer.options import Natural, NonNegative, Range, check_value
from trainer.rundir.files import (
    CHECKSUM,
    FORMAT,
    STATUS,
    atomic_write_text,
    check_format,
    overwrite,
    with_checksum,
)
from trainer.rundir.foreign import MAX_NUMBER, parse_json, read_text
from trainer.rundir.strict_json import as_float, dumps

FINISHED, CRASHED, USER_ERROR, PREEMPTED, INTERRUPTED = 0, 1, 2, 75, 130
"""Exit codes."""

STATES = {
    "queued": "has not started yet",
    "starting": "its job runs, but it has not reported yet",
    "running": "trains",
    "finished": "reached the end of its budget",
    "failed": "ended with an error",
    "preempted": "stopped by a signal with a checkpoint: the same command continues it",
    "cancelled": "ended by its user",
    "vanished": "neither runs any more nor reported an end",
    "unknown": "cannot be told: its status or the queue cannot be read",
    "unreadable": "its config cannot be read",
}
"""Every state of a run, with its meaning. A run writes running, finished, failed or preempted into status.json; the
others are found by commands that look at its files, its process and the queue."""


FIELDS: dict[str, Any] = {
    "state": Literal["running", "finished", "failed", "preempted"],
    "step": Annotated[int, Range(ge=0, le=MAX_NUMBER)],
    "metrics": dict,
    "primary": str | None,
    "error": str | None,
    "host": str,
    "pid": Annotated[int, Range(ge=1, lt=2**31)],
    "started": Natural | None,
    "time": NonNegative,
}
"""The types of the fields of status.json."""


def read_status(run: Path) -> dict[str, Any]:
    """The last written status of the run in a directory; empty where there is none, or none that is a JSON object.

    Damaged fields are left out. A metric that was not finite is nan. Of a status in another format only this is
    known: its ``state`` is ``unknown``, and its ``error`` says why, so that a command on many runs can still show the
    others.
    """
    path = run / STATUS
    try:
        record = parse_json(read_text(path))
        if not isinstance(record, dict):
            return {}
        check_format(record, path)
        record.pop(CHECKSUM, None)
    except (OSError, ValueError):
        return {}
    except UserError as error:
        return {"state": "unknown", "error": str(error)}
    status = {name: value for name, value in record.items() if _has_type(FIELDS.get(name, Any), value)}
    if "metrics" in status:
        numbers = {name: value for name, value in status["metrics"].items() if _has_type(float | None, value)}
        status["metrics"] = {name: as_float(value) for name, value in numbers.items()}
    return status


def _has_type(type_: Any, value: Any) -> bool:
    try:
        check_value(type_, value, "")
    except ConfigError:
        return False
    return True


def write_status(run: Path, state: str, **fields: Any) -> None:
    """Replaces status.json at once: a reader sees the old one or the new one.

    Args:
        run: the run directory.
        state: running, finished, failed or preempted.
        fields: step, metrics, primary (the metric that picks the best), error; declared: direction and format of the
            metrics, by default as this process knows them.
    """
    if fields.get("metrics"):
        fields.setdefault("declared", metrics.declarations(fields["metrics"]))
    process = {"host": socket.gethostname(), "pid": os.getpid(), "started": start_time(os.getpid())}
    process |= {"time": time.time()}
    text = dumps(with_checksum({"format": FORMAT, "state": state, **fields, **process}), indent=2)
    try:
        atomic_write_text(run / STATUS, text)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not overwrite(run / STATUS, text):
            raise


def process_is_alive(host: str | None, pid: int, started: int | None = None) -> bool:
    """Whether a process may still exist: one of another machine always may, since we cannot ask there.

    Args:
        host: its machine.
        pid: its number, which another one may have by now.
        started: its `start_time`; None if that is not known.
    """
    if host != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return started is None or start_time(pid) in (None, started)


def start_time(pid: int) -> int | None:
    """When a process started, in ticks of the kernel's clock since this machine did; None where /proc does not say."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
