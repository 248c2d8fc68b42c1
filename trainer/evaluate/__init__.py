"""``python -m trainer.evaluate``: metrics and predictions of a run's checkpoint."""
