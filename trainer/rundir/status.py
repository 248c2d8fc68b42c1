"""How a run stands and how it ended: status.json and the exit codes. Imports no torch."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from trainer.rundir.files import STATUS, atomic_write_text

FINISHED, CRASHED, USER_ERROR, PREEMPTED, INTERRUPTED = 0, 1, 2, 75, 130
"""Exit codes."""


def read_status(run: Path) -> dict[str, Any]:
    """The last written status of the run in a directory; empty where there is none."""
    try:
        return json.loads((run / STATUS).read_text())
    except (OSError, ValueError):
        return {}


def write_status(run: Path, state: str, **fields: Any) -> None:
    """Replaces status.json at once: a reader sees the old one or the new one.

    Args:
        run: the run directory.
        state: running, finished, failed or preempted.
        fields: step, metrics, primary (the metric that picks the best), error.
    """
    process = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    atomic_write_text(run / STATUS, json.dumps({"state": state, **fields, **process}, indent=2))
