"""What AdaFisher warns of, once: curvature that grows old, and parameters that nobody trains."""

import warnings
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from . import dtensor
from .state import Tracked


class Warnings:
    """Remembers what it has warned of."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def check(self, tracked: Sequence[Tracked], limit: int) -> None:
        """Warns of curvature from layers that was refreshed at step ``limit`` or before.

        Of parameters without a gradient there was nothing to refresh.
        """
        old = [t for t in tracked if t.state["captured"] and t.state["refreshed"] <= limit]
        self._warn(
            [t.name for t in old if t.param.grad is not None and dtensor.local_tensor(t.param.grad).any()],
            "keep the curvature that they had, since their layers run in eval() or are not called: "
            "call model.train(), or choose capture='gradient'",
        )

    def check_model(self, model: nn.Module, known: Mapping[Tensor, str]) -> None:
        """Warns of parameters that the model did not have when the optimizer was made."""
        self._warn(
            [name for name, p in model.named_parameters() if p not in known and p.grad is not None],
            "were put into the model after the optimizer was made, and are not trained: "
            "call optimizer.add_param_group({'params': module.parameters()})",
        )

    def _warn(self, params: Sequence[str], message: str) -> None:
        if params and message not in self._given:
            self._given.add(message)
            warnings.warn(
                f"AdaFisher: {len(params)} parameters, such as {params[0]}, {message}", stacklevel=2
            )
