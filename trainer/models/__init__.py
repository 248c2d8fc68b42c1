"""Models, one file a family.

Every module of this package is imported, so a new file with a class under ``@MODELS.register`` is a new model.
"""

from trainer.models.base import MODELS
from trainer.registry import import_submodules

import_submodules(__name__)

__all__ = ["MODELS"]
