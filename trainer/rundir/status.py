"""The state of a run and how it ended: status.json and the exit codes. Imports no torch."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from trainer.errors import UserError
from trainer.rundir.files import FORMAT, STATUS, atomic_write_text, check_format

FINISHED, CRASHED, USER_ERROR, PREEMPTED, INTERRUPTED = 0, 1, 2, 75, 130
"""Exit codes."""


def read_status(run: Path) -> dict[str, Any]:
    """The last written status of the run in a directory; empty where there is none, or none that is JSON.

    Of a status in another format only this is known: its ``state`` is ``unknown``, and its ``error`` says why. Who
    looks at many runs can so show the others.
    """
    path = run / STATUS
    try:
        status = json.loads(path.read_text())
        check_format(status, path)
    except (OSError, ValueError):
        return {}
    except UserError as error:
        return {"state": "unknown", "error": str(error)}
    return status


def write_status(run: Path, state: str, **fields: Any) -> None:
    """Replaces status.json at once: a reader sees the old one or the new one.

    Args:
        run: the run directory.
        state: running, finished, failed or preempted.
        fields: step, metrics, primary (the metric that picks the best), error.
    """
    process = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    record = {"format": FORMAT, "state": state, **fields, **process}
    atomic_write_text(run / STATUS, json.dumps(record, indent=2))


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
