"""Data sets by name (``data=NAME``), and the loader that makes batches of them.

Every module of this package is imported, so a new file with a function under ``@DATA.register`` is a new data set.
"""

from trainer.data.base import DATA, Batch, Data, LazySplit, LoaderOptions, Split
from trainer.data.holdout import hold_out
from trainer.data.loader import TrainLoader, eval_batches
from trainer.registry import import_submodules

import_submodules(__name__)

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
