"""Models, one file a family. Importing this package registers them."""

from trainer.models import cnn, mlp
from trainer.models.base import MODELS

__all__ = ["MODELS", "cnn", "mlp"]
