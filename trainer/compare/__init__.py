"""``python -m trainer.compare``: which contender is better, at equal training seconds and each at its best rate."""
