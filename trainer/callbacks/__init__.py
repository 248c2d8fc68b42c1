"""Callbacks: code of one's own at a few moments of training. One file per callback.

Every module of this package is imported, so a new file with a class under ``@CALLBACKS.register`` is a new callback.
"""

from trainer.callbacks.base import CALLBACKS, Callback, Callbacks, Setup, Training, check_callbacks
from trainer.registry import import_submodules

import_submodules(__name__)

__all__ = ["CALLBACKS", "Callback", "Callbacks", "Setup", "Training", "check_callbacks"]
