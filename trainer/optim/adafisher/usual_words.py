"""Options that torch's optimizers have and AdaFisher does not: accepted where they change nothing, refused by name."""

from collections.abc import Mapping
from typing import Any

_ACCEPTED: Mapping[str, tuple[Any, ...]] = {
    "foreach": (None, True),
    "capturable": (None, False),
    "differentiable": (None, False),
    "amsgrad": (None, False),
}
_INSTEAD = {
    "foreach": "it updates all parameters at once",
    "capturable": "its refreshes cannot be in a CUDA graph",
    "differentiable": "its steps cannot be differentiated",
    "amsgrad": "it has no second moment",
    "beta": "the decay of the momentum is momentum",
    "betas": "the decay of the momentum is momentum, that of the factors gamma",
    "eps": "what is added to the curvature is damping",
}


def check_words(words: Mapping[str, Any]) -> None:
    """Checks that every option asks for what AdaFisher does anyway.

    Raises:
        TypeError: one does not, or there is no such option.
    """
    for name, value in words.items():
        if name not in _INSTEAD:
            raise TypeError(f"AdaFisher has no option {name}")
        if value not in _ACCEPTED.get(name, ()):
            raise TypeError(f"AdaFisher does not support {name}={value!r}: {_INSTEAD[name]}")
