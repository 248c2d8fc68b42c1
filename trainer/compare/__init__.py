"""``python -m trainer.compare``: which contender is better, at equal training time and each at its best rate."""
