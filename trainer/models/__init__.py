"""Models, one file a family. Importing this package registers them."""

from trainer.models import autoencoder, cnn, densenet, gpt, mlp, resnet, timm, torchvision
from trainer.models.base import MODELS

__all__ = ["MODELS", "autoencoder", "cnn", "densenet", "gpt", "mlp", "resnet", "timm", "torchvision"]
