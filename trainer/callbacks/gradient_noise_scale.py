"""The gradient noise scale: the batch size at which noise and signal of the gradient are equal."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from trainer.callbacks.base import CALLBACKS, Callback, Setup, Training
from trainer.data import Batch
from trainer.errors import ConfigError
from trainer.options import Fraction


@CALLBACKS.register("gradient_noise_scale", may_differ=True)
class GradientNoiseScale(Callback):
    """Estimates ``tr(Σ) / |G|²``, G the true gradient and Σ the covariance of one sample's (arXiv 1812.06162, A.1).

    The squared norm of a mean over n samples is ``|G|² + tr(Σ) / n`` on average; the gradients of a micro-batch and of
    the whole batch give two such equations. Reported as ``gradient_noise_scale/scale``, in samples, with ``signal``,
    |G|², and ``noise``, tr(Σ); not a number while the signal is not positive.

    Args:
        decay: weight of the old values per step, in the averages of signal and noise.
    """

    def __init__(self, *, decay: Fraction = 0.99) -> None:
        self.decay = decay
        self.noise = self.signal = 0.0
        self.weight = 0.0
        self._small = 0.0  # squared norm of the first micro-batch's gradient, a mean over ranks
        self._is_first = True

    def check(self, setup: Setup) -> None:
        """Refuses runs in which no rank sees the gradient of a part of a batch."""
        if setup.is_sharded:
            raise ConfigError(
                "callbacks.gradient_noise_scale needs whole gradients on each rank: use parallel=ddp"
            )
        if setup.micro_batches == 1:
            raise ConfigError(
                "callbacks.gradient_noise_scale compares a micro-batch with the batch: set loop.accumulate=2 or more"
            )

    def after_backward(self, training: Training, batch: Batch, last: bool) -> None:
        """Takes the norm of the first micro-batch's gradient."""
        if self._is_first:
            factor = training.micro_batches / training.scaler.get_scale()
            own = torch.tensor(squared_norm(training.model) * factor**2, dtype=torch.float64)
            self._small = training.ranks.sum(own).item() / training.ranks.world_size
        self._is_first = last

    def before_update(self, training: Training) -> None:
        """Compares it with that of the whole batch."""
        large, n = squared_norm(training.model), training.batch_size
        part = n / training.micro_batches / training.ranks.world_size
        noise = (self._small - large) / (1 / part - 1 / n)
        signal = (n * large - part * self._small) / (n - part)
        self.noise = self.decay * self.noise + (1 - self.decay) * noise
        self.signal = self.decay * self.signal + (1 - self.decay) * signal
        self.weight = self.decay * self.weight + (1 - self.decay)

    def after_update(self, training: Training) -> None:
        """Reports the averages."""
        if training.progress().step % training.log_every == 0:
            scale = self.noise / self.signal if self.signal > 0 else math.nan
            values = {"scale": scale, "signal": self.signal / self.weight, "noise": self.noise / self.weight}
            training.report({f"gradient_noise_scale/{name}": value for name, value in values.items()})

    def state_dict(self) -> dict[str, Any]:
        """The averages."""
        return {"noise": self.noise, "signal": self.signal, "weight": self.weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes them over."""
        self.noise, self.signal, self.weight = state["noise"], state["signal"], state["weight"]


def squared_norm(model: nn.Module) -> float:
    """Of a model's gradient."""
    return get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item() ** 2
