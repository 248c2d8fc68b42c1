"""Objectives: the loss that a model minimises, and the metrics by which it is judged. One file per kind.

Every module of this package is imported, so a new file with a class under ``@OBJECTIVES.register`` is a new objective.
"""

from trainer.objectives.base import OBJECTIVES, Objective, Supervised, default_objective
from trainer.registry import import_submodules

import_submodules(__name__)

__all__ = ["OBJECTIVES", "Objective", "Supervised", "default_objective"]
