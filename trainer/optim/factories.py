"""AdaFisher by name in the factories of timm and pytorch-optimizer, which hand an optimizer parameters but no model."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from trainer._private import timm_registry
from trainer.optim.adafisher import AdaFisher


class AdaFisherOfParameters(AdaFisher):
    """AdaFisher with the parameters first, as factories and wrappers call an optimizer.

    Args:
        params: as for `AdaFisher`.
        layers_of: the model that owns them, which a factory hands on as any other option.
        options: those of `AdaFisher`.

    Raises:
        TypeError: the model is missing.
    """

    def __init__(self, params: Iterable[Any], *, layers_of: nn.Module | None = None, **options: Any) -> None:
        if layers_of is None:
            raise TypeError(
                "AdaFisher needs the model, whose layers it watches: add the option layers_of=model"
            )
        super().__init__(layers_of, params, **options)


def register_with_timm() -> None:
    """Makes ``timm.optim.create_optimizer_v2(model, "adafisher", layers_of=model, ...)`` AdaFisher.

    timm's groups (weight decay, layer-wise rates) and ``"lookahead_adafisher"`` come with it. It sets
    ``weight_decay`` to 0 unless told otherwise.
    """
    from timm.optim import OptimInfo

    description = "Momentum preconditioned by two diagonals of the Fisher information for each layer"
    timm_registry().register(OptimInfo("adafisher", AdaFisherOfParameters, description, has_eps=False))


def register_with_pytorch_optimizer() -> None:
    """Makes ``pytorch_optimizer.create_optimizer(model, "adafisher", lr=1e-2, layers_of=model, ...)`` AdaFisher.

    That sets ``lr`` to 1e-3 and ``weight_decay`` to 0 unless told otherwise.
    """
    from pytorch_optimizer.optimizer import OPTIMIZERS

    OPTIMIZERS["adafisher"] = AdaFisherOfParameters
