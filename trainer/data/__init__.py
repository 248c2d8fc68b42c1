"""Data sets by name (``data=NAME``), and the loader that makes batches of them."""

from trainer.data import cifar, digits, fashion_mnist, image_folder, synthetic, text  # noqa: F401
from trainer.data.base import DATA, Batch, Data, LazySplit, LoaderOptions, Split
from trainer.data.holdout import hold_out
from trainer.data.loader import TrainLoader, eval_batches

__all__ = [
    "DATA",
    "Batch",
    "Data",
    "LazySplit",
    "LoaderOptions",
    "Split",
    "TrainLoader",
    "eval_batches",
    "hold_out",
]
