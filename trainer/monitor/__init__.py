"""Where a run's numbers go: the terminal, TensorBoard, files. One file per sink.

Every module of this package is imported, so a new file with a class under ``@SINKS.register`` is a new sink.
"""

from trainer.monitor.base import (
    SINKS,
    MonitorOptions,
    Monitors,
    Progress,
    RunInfo,
    Sink,
    Status,
    check_sinks,
)
from trainer.monitor.profile import Profile
from trainer.registry import import_submodules

import_submodules(__name__)

__all__ = [
    "SINKS",
    "MonitorOptions",
    "Monitors",
    "Profile",
    "Progress",
    "RunInfo",
    "Sink",
    "Status",
    "check_sinks",
]
