"""Where a run's numbers go: the terminal, TensorBoard, files. One file per sink.

Every module of this package is imported, so a new file with a class under ``@SINKS.register`` is a new sink.
"""

import importlib
import pkgutil

from trainer.monitor.base import (
    SINKS,
    MonitorOptions,
    Monitors,
    Progress,
    RunInfo,
    Sink,
    Status,
)
from trainer.monitor.profile import Profile

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "SINKS",
    "MonitorOptions",
    "Monitors",
    "Profile",
    "Progress",
    "RunInfo",
    "Sink",
    "Status",
]
