"""The state of a run and how it ended: status.json and the exit codes. Imports no torch."""

import errno
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from trainer import metrics
from trainer.errors import ConfigError, UserError, one_line
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
    "pruned": "ended by a search with a checkpoint, since other trials were better",
    "cancelled": "ended by its user",
    "vanished": "neither runs any more nor reported an end",
    "unknown": "cannot be told: its status or the queue cannot be read",
    "unreadable": "its config cannot be read",
}
"""Every state of a run, with its meaning. A run writes running, finished, failed or preempted into status.json, and a
search pruned; the others are found by commands that look at its files, its process and the queue."""


FIELDS: dict[str, Any] = {
    "state": Literal["running", "finished", "failed", "preempted", "pruned"],
    "step": Annotated[int, Range(ge=0, le=MAX_NUMBER)],
    "saved": Annotated[int, Range(ge=0, le=MAX_NUMBER)] | None,
    "metrics": dict,
    "primary": str | None,
    "error": str | None,
    "host": str,
    "pid": Annotated[int, Range(ge=1, lt=2**31)],
    "started": Natural | None,
    "time": NonNegative,
}
"""The types of the fields of status.json."""


KEPT = ("step", "saved", "metrics", "primary", "declared", "host", "pid", "started")
"""The fields of a run that has ended which those who say why leave as they are."""


def read_status(run: Path) -> dict[str, Any]:
    """The last written status of the run in a directory; empty where there is none.

    Damaged fields are left out. A metric that was not finite is nan. Of a status that is no JSON object only an
    ``error`` is known. Of one in another format, or whose checksum is wrong, ``state`` is ``unknown`` and ``error``
    says why, so that a command on many runs can still show the others.
    """
    path = run / STATUS
    try:
        record = parse_json(read_text(path))
        if not isinstance(record, dict):
            raise ValueError("it is not an object")
        check_format(record, path)
        record.pop(CHECKSUM, None)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        return {"error": f"{path} is damaged: {one_line(error)[:200]}"}
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
        state: running, finished, failed, preempted or pruned.
        fields: step, saved (the step of the newest checkpoint), metrics, primary (the metric that picks the best),
            error; declared: direction and format of the metrics, by default as this process knows them.
    """
    if fields.get("metrics"):
        fields.setdefault("declared", metrics.declarations(fields["metrics"]))
    process = {"host": socket.gethostname(), "pid": os.getpid(), "started": start_time(os.getpid())}
    process |= {"time": time.time()}
    text = dumps(with_checksum({"format": FORMAT, "state": state, **process, **fields}), indent=2)
    try:
        atomic_write_text(run / STATUS, text)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not overwrite(run / STATUS, text):
            raise


def change_state(run: Path, state: str, reason: str) -> None:
    """Sets state and reason in status.json after a run has ended; what the run has written of itself stays.

    Raises:
        OSError: it cannot be written.
    """
    status = read_status(run)
    kept = {key: status[key] for key in KEPT if key in status}
    write_status(run, state, **kept, error=reason)


class StatusFile:
    """status.json of a run that this process trains, written by several of its threads; once it has ended, it stays so.

    Args:
        run: the run directory.
        primary: the metric that picks the best checkpoint.
        step: that the run is at.
        saved: the step of its newest checkpoint; None before the first.
        metrics: of the last evaluation; empty before the first.
    """

    PATIENCE = 5.0
    """Seconds after which a thread writes though another one, on a disk that does not answer, has not ended to."""

    def __init__(
        self, run: Path, primary: str, step: int, saved: int | None, metrics: Mapping[str, float]
    ) -> None:
        self.run = run
        self._fields: dict[str, Any] = {
            "step": step,
            "saved": saved,
            "metrics": dict(metrics),
            "primary": primary,
            "error": None,
        }
        self._ended = False
        self._lock = threading.Lock()

    def note(self, **fields: Any) -> None:
        """Changes fields of what will be written next."""
        self._fields |= fields

    def write(self, state: str, **fields: Any) -> None:
        """Writes the state of the run with the fields that have changed; "running" only until it has ended.

        Raises:
            OSError: it cannot be written.
        """
        locked = self._lock.acquire(timeout=self.PATIENCE)
        try:
            if state == "running" and self._ended:
                return
            self._ended = state != "running"
            self._fields |= fields
            write_status(self.run, state, **self._fields)
        finally:
            if locked:
                self._lock.release()


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
