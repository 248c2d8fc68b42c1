"""Optimizers and learning-rate schedules. Importing this package registers them."""

from trainer.optim import pytorch_optimizer
from trainer.optim.adafisher import AdaFisher, AdaFisherW
from trainer.optim.param_groups import OptimizerOptions, param_groups
from trainer.optim.schedules import SCHEDULES, Schedule, ScheduleOptions
from trainer.optim.torch_optimizers import OPTIMIZERS

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "AdaFisher",
    "AdaFisherW",
    "OptimizerOptions",
    "Schedule",
    "ScheduleOptions",
    "param_groups",
    "pytorch_optimizer",
]
