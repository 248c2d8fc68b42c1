"""The state of a run and how it ended: status.json and the exit codes. Imports no torch."""

import errno
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from trainer import metrics
from trainer.errors import UserError
from trainer.rundir.files import (
    CHECKSUM,
    FORMAT,
    STATUS,
    atomic_write_text,
    check_format,
    overwrite,
    with_checksum,
)
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


def read_status(run: Path) -> dict[str, Any]:
    """The last written status of the run in a directory; empty where there is none, or none that is JSON.

    A metric that was not finite is nan. Of a status in another format only this is known: its ``state`` is
    ``unknown``, and its ``error`` says why, so that a command on many runs can still show the others.
    """
    path = run / STATUS
    try:
        status = json.loads(path.read_text())
        check_format(status, path)
        status.pop(CHECKSUM, None)
    except (OSError, ValueError):
        return {}
    except UserError as error:
        return {"state": "unknown", "error": str(error)}
    if status.get("metrics"):
        status["metrics"] = {name: as_float(value) for name, value in status["metrics"].items()}
    return status


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
    process = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    text = dumps(with_checksum({"format": FORMAT, "state": state, **fields, **process}), indent=2)
    try:
        atomic_write_text(run / STATUS, text)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not overwrite(run / STATUS, text):
            raise


def process_is_alive(host: str | None, pid: int) -> bool:
    """Whether a process may still exist: one of another machine always may, since we cannot ask there."""
    if host != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True
