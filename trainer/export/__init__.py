"""``python -m trainer.export``: the model of a checkpoint in a form that other programs read."""
