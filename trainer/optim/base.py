"""The registry of optimizers, the options that all of them have, and what their constructors share."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from trainer.distributed.dtensor import is_dtensor
from trainer.registry import Registry

Groups = list[dict[str, Any]]
"""Parameter groups as torch optimizers take them; ``params`` is a list of named parameters."""

FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}
"""Those on which torch's own optimizers can update all parameters in one kernel."""


@dataclass(frozen=True)
class OptimizerOptions:
    """Options that every optimizer's config group has."""

    decay_norms_and_biases: bool = True
    """False exempts norm scales and shifts and biases (parameters of fewer than 2 dimensions) from decay."""


OPTIMIZERS = Registry(
    "optimizer", common=OptimizerOptions, entry_points="trainer.optimizers", refusals=(ValueError,)
)
"""Optimizers by name: ``make(model, params, *, options...)``, params as `trainer.optim.param_groups` gives them.
What they may offer besides is in `trainer.optim.protocols`."""


class FixedGroups(Optimizer):
    """An optimizer that finds out only when it is made what it has to know of its parameters: none come later."""

    _has_groups = False

    def __init__(self, params: Groups, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self._has_groups = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group that the constructor was given.

        Raises:
            ValueError: it comes later.
        """
        if self._has_groups:
            name = type(self).__name__
            raise ValueError(f"{name} takes no parameters later: build the optimizer with all parameters")
        super().add_param_group(param_group)


def is_sharded(groups: Groups) -> bool:
    """Whether any parameter is spread over several ranks."""
    return any(is_dtensor(p) for p in _parameters(groups))


def fuses_by_default(groups: Groups) -> bool:
    """Whether torch has a kernel that updates all of these parameters at once."""
    return all(p.device.type in FUSED_DEVICES for p in _parameters(groups))


def _parameters(groups: Groups) -> Iterator[Tensor]:
    return (p for group in groups for _, p in group["params"])
