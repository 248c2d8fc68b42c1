"""Optimizers and learning-rate schedules.

Every module of this package is imported, so a new file with an optimizer under ``@OPTIMIZERS.register`` is a new
optimizer. AdaFisher is registered here, since its folder depends on torch alone.
"""

from trainer.optim.adafisher import AdaFisher, AdaFisherW
from trainer.optim.base import OPTIMIZERS, OptimizerOptions
from trainer.optim.param_groups import param_groups
from trainer.optim.schedules import SCHEDULES, Schedule, ScheduleOptions
from trainer.options import options_of
from trainer.registry import import_submodules

OPTIMIZERS.register("adafisher")(AdaFisher)
OPTIMIZERS.add(
    "adafisherw",
    AdaFisherW,
    {name: option for name, option in options_of(AdaFisher).items() if name != "decoupled"},
)
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
