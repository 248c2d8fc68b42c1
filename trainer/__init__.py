"""Train PyTorch models from configs; compare optimizers honestly."""

__version__ = "0.2.0"
