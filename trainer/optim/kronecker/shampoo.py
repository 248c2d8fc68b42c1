"""Shampoo, in its original form."""

from typing import Any

import torch
from torch import Tensor, nn

from trainer.optim.adafisher.mean_squares import factor_dtype
from trainer.optim.base import OPTIMIZERS, Groups
from trainer.optim.kronecker.inverses import inverse_root
from trainer.optim.kronecker.preconditioned_sgd import PreconditionedSGD
from trainer.options import Count, Fraction, NonNegative, Positive

NORMS = (
    *(
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.SyncBatchNorm,
        nn.GroupNorm,
        nn.LayerNorm,
        nn.RMSNorm,
    ),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
"""Layers whose parameters take the plain gradient."""


@OPTIMIZERS.register("shampoo")
class Shampoo(PreconditionedSGD):
    r"""Preconditions each of the k axes of a parameter by the gradients g so far, unfolded along that axis:

        Lᵢ ← Lᵢ + g₍ᵢ₎ g₍ᵢ₎ᵀ        U = g ×₁ (L₁ + ε I)^(-1/2k) ... ×ₖ (Lₖ + ε I)^(-1/2k)

    Parameters of norms take the plain gradient, and an axis that is longer than ``largest_factor`` is left as it is.
    Then come clipping and momentum as in `PreconditionedSGD`. The defaults are the published settings of AdaFisher's
    comparison for convolutional networks.

    Args:
        model: the model that owns the parameters; says which of them are norms'.
        params: groups of named parameters.
        lr, momentum, weight_decay, clip_norm, kl_clip: see `PreconditionedSGD`.
        damping: ε > 0. Eigenvalues are at least the rounding error of the largest one besides.
        interval: steps between updates of L and of its roots, ≥ 1.
        largest_factor: the longest axis that is preconditioned.

    State of a parameter besides momentum: ``statistics_I`` and ``root_I`` of its axis I.

    Raises:
        ConfigError: the parameters are sharded.

    Reference: Gupta, Koren and Singer 2018, arXiv 1802.09568.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Groups,
        *,
        lr: NonNegative = 0.3,
        momentum: Fraction = 0.9,
        weight_decay: NonNegative = 5e-4,
        damping: Positive = 1e-12,
        interval: Count = 1,
        clip_norm: Positive | None = 1.0,
        kl_clip: Positive | None = None,
        largest_factor: Count = 8192,
    ) -> None:
        self.damping, self.interval, self.largest_factor = damping, interval, largest_factor
        super().__init__(
            model,
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            kl_clip=kl_clip,
        )

    def find_layers(self) -> None:
        """Finds the parameters of norms."""
        norms = (m for m in self.model.modules() if isinstance(m, NORMS))
        self._of_norms: dict[Tensor, str] = {
            p: type(m).__name__ for m in norms for p in m.parameters(recurse=False)
        }

    @property
    def needs_refresh(self) -> bool:
        """Whether the coming step updates the statistics."""
        return self.steps % self.interval == 0

    def axes(self, param: Tensor) -> list[int]:
        """Those that are preconditioned."""
        if param in self._of_norms:
            return []
        return [axis for axis, size in enumerate(param.shape) if size <= self.largest_factor]

    def source(self, param: Tensor) -> str:
        """Which axes of its gradient count, or why none does."""
        if param in self._of_norms:
            return f"none: {self._of_norms[param]}"
        axes = ", ".join(map(str, self.axes(param)))
        return f"gradient, axes {axes}" if axes else f"none: no axis <= largest_factor={self.largest_factor}"

    def new_state(self, param: Tensor) -> dict[str, Any]:
        """Roots of nothing, which change nothing."""
        options: dict[str, Any] = {"dtype": factor_dtype(param.dtype), "device": param.device}
        state = {}
        for axis in self.axes(param):
            size = param.shape[axis]
            state[f"statistics_{axis}"] = torch.zeros(size, size, **options)
            state[f"root_{axis}"] = torch.eye(size, **options)
        return state

    def refresh(self) -> None:
        """Adds this step's gradient to the statistics, and takes their roots."""
        for param in self.names:
            if param.grad is None:
                continue
            state = self.state[param]
            for axis in self.axes(param):
                unfolded = (
                    param.grad.to(factor_dtype(param.dtype)).movedim(axis, 0).reshape(param.shape[axis], -1)
                )
                statistics = state[f"statistics_{axis}"].addmm_(unfolded, unfolded.T)
                state[f"root_{axis}"].copy_(inverse_root(statistics, 2 * param.dim(), self.damping))

    def precondition(self) -> dict[Tensor, Tensor]:
        """U of every parameter that has axes to precondition."""
        updates = {}
        for param in self.names:
            if param.grad is None or not (axes := self.axes(param)):
                continue
            update = param.grad.to(factor_dtype(param.dtype))
            for axis in axes:
                root = self.state[param][f"root_{axis}"]
                update = torch.tensordot(root, update, ([1], [axis])).movedim(0, axis)
            updates[param] = update
        return updates
