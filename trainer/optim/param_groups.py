"""Parameter groups: what is trained, and which of it decays."""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class OptimizerOptions:
    """Options that every optimizer's config group has."""

    decay_norms_and_biases: bool = True
    """False exempts norm scales and shifts and biases (parameters of fewer than 2 dimensions) from decay."""


def param_groups(model: nn.Module, decay_norms_and_biases: bool) -> list[dict[str, Any]]:
    """The model's trainable parameters, each once and with its name, in groups as torch optimizers take them.

    A shared parameter goes by its first name; frozen ones are left out. Where norms and biases do not decay,
    they have a group of their own with ``weight_decay`` 0.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if decay_norms_and_biases:
        return [{"params": named}]
    decaying = {"params": [(name, p) for name, p in named if p.ndim >= 2]}
    exempt = {"params": [(name, p) for name, p in named if p.ndim < 2], "weight_decay": 0.0}
    return [group for group in (decaying, exempt) if group["params"]]
