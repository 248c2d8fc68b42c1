"""AdaFisher. This folder depends on torch alone: it can be copied into any program as it is.

Where to find what: ``reference.py`` our two rules in plain code · ``optimizer.py`` the optimizer · ``rules.py``
what the rules differ in · ``layers.py``, ``convolutions.py``, ``library_layers.py`` the factors of each layer type ·
``update.py`` the update · ``roles.py``, ``update_orthogonal.py`` what ``rule="orthogonal"`` orthogonalises, and how.
"""

from . import library_layers as _library_layers  # noqa: F401 (makes them known)
from .adafisherw import AdaFisherW
from .layers import LAYERS, Layer, register_layer
from .limits import Interval
from .optimizer import AdaFisher
from .state import StateLayout
from .views import View

__all__ = ["LAYERS", "AdaFisher", "AdaFisherW", "Interval", "Layer", "StateLayout", "View", "register_layer"]
