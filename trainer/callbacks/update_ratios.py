"""How far a step moves each parameter, relative to its size: about a thousandth is a common rule of thumb."""

import torch
from torch import Tensor

from trainer.callbacks.base import CALLBACKS, Callback, Training
from trainer.distributed.dtensor import local_tensor


@CALLBACKS.register("update_ratios", may_differ=True)
class UpdateRatios(Callback):
    """Reports ``|w' - w| / |w|`` of each parameter as ``update_ratio/NAME``, in the steps that are logged.

    In these it needs a copy of the parameters. A parameter that is zero has no ratio.
    """

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}

    def before_update(self, training: Training) -> None:
        """Notes the parameters before a step that will be logged."""
        if (training.progress().step + 1) % training.log_every == 0:
            self._before = {name: value.clone() for name, value in weights(training).items()}

    def after_update(self, training: Training) -> None:
        """Compares them with what they are now."""
        if not self._before:
            return
        pairs = [
            torch.stack([(value - self._before[name]).square().sum(), self._before[name].square().sum()])
            for name, value in weights(training).items()
        ]
        squares = torch.stack(pairs)  # [parameters, 2]
        if training.is_sharded:
            squares = training.ranks.sum(squares) / training.replicas
        ratios = (squares[:, 0] / squares[:, 1]).sqrt().tolist()
        sizes = squares[:, 1].tolist()
        named = zip(self._before, ratios, sizes, strict=True)
        training.report({f"update_ratio/{name}": ratio for name, ratio, size in named if size})
        self._before = {}


def weights(training: Training) -> dict[str, Tensor]:
    """The trained parameters on this rank by name."""
    named = training.model.named_parameters()
    return {name: local_tensor(p.detach()) for name, p in named if p.requires_grad}
