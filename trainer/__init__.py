"""Train PyTorch models from configs; compare optimizers honestly."""
