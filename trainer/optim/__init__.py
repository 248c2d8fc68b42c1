"""Optimizers and learning-rate schedules.

Every module of this package is imported, so a new file with an optimizer under ``@OPTIMIZERS.register`` is a new
optimizer. AdaFisher is registered here, since its folder depends on torch alone.
"""

from trainer.optim.adafisher import AdaFisher, AdaFisherW
from trainer.optim.base import OPTIMIZERS, OptimizerOptions
from trainer.optim.param_groups import param_groups
from trainer.optim.schedules import SCHEDULES, Schedule, ScheduleOptions
from trainer.registry import import_submodules

OPTIMIZERS.register("adafisher")(AdaFisher)
OPTIMIZERS.register("adafisherw")(AdaFisherW)
import_submodules(__name__)

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "AdaFisher",
    "AdaFisherW",
    "OptimizerOptions",
    "Schedule",
    "ScheduleOptions",
    "param_groups",
]
