"""Eva: K-FAC with vectors for factors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer.optim.adafisher.layers import Layer
from trainer.optim.adafisher.mean_squares import factor_dtype
from trainer.optim.base import OPTIMIZERS, Groups
from trainer.optim.kronecker.inverses import average
from trainer.optim.kronecker.layerwise import LayerwisePreconditioner, Seen, Watched
from trainer.optim.kronecker.rows import gradient_rows, input_rows, layer_of_sizes
from trainer.options import Count, Fraction, NonNegative, Positive


@OPTIMIZERS.register("eva")
class Eva(LayerwisePreconditioner):
    r"""Preconditions Linear and Conv2d layers by the outer product of the means of their rows, b̄ b̄ᵀ ⊗ ā āᵀ + λ I.

    With ā the mean of the rows that a layer multiplies, b̄ that of the rows of the gradient of the per-sample loss, and
    the gradient ∇ of weight and bias, [rows, columns (+ 1)], the inverse is that of Sherman and Morrison:

        U = (∇ − (b̄ᵀ ∇ ā) / (λ + ‖ā‖² ‖b̄‖²) b̄ āᵀ) / λ

    Then come clipping and momentum as in `PreconditionedSGD`.

    Args:
        model: the model that owns the parameters.
        params: groups of named parameters.
        lr, momentum, weight_decay, clip_norm, kl_clip: see `PreconditionedSGD`.
        damping: λ > 0.
        factor_decay: weight of the old means in their averages, 0 ≤ x < 1.
        factor_interval: steps between refreshes of the means, ≥ 1.

    State of a layer's weight besides momentum: ``a`` [columns (+ 1)] and ``b`` [rows].

    Raises:
        ConfigError: the parameters are sharded.

    Reference: Zhang, Shi and Li 2023, "Eva: Practical Second-order Optimization with Kronecker-vectorized
    Approximation".
    """

    largest_factor = 2**62  # vectors of any size are small

    def __init__(
        self,
        model: nn.Module,
        params: Groups,
        *,
        lr: NonNegative = 0.1,
        momentum: Fraction = 0.9,
        weight_decay: NonNegative = 5e-4,
        damping: Positive = 0.03,
        factor_decay: Fraction = 0.95,
        factor_interval: Count = 1,
        clip_norm: Positive | None = None,
        kl_clip: Positive | None = 1e-3,
    ) -> None:
        self.damping, self.factor_decay, self.factor_interval = damping, factor_decay, factor_interval
        super().__init__(
            model,
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            kl_clip=kl_clip,
        )

    @property
    def needs_refresh(self) -> bool:
        """Whether the coming step refreshes the means."""
        return self.steps % self.factor_interval == 0

    def described(self, watched: Watched) -> Layer:
        """Makes means of the rows."""
        module, dtype, (rows, columns) = watched.module, factor_dtype(watched.weight.dtype), watched.size
        return layer_of_sizes(
            module,
            lambda x, output: input_rows(module, x).mean(0, dtype=dtype),
            lambda s: gradient_rows(module, s).mean(0, dtype=dtype),
            ((columns,), (rows,)),
            degree=1,
        )

    def new_factors(self, watched: Watched, options: Mapping[str, Any]) -> dict[str, Tensor]:
        """Zero, since nothing is known."""
        rows, columns = watched.size
        return {"a": torch.zeros(columns, **options), "b": torch.zeros(rows, **options)}

    def take(self, watched: Watched, seen: Seen, state: dict[str, Any]) -> None:
        """Takes the means into their averages."""
        state["refreshes"] += 1
        average(state["a"], seen.H, self.factor_decay, state["refreshes"])
        average(state["b"], seen.S, self.factor_decay, state["refreshes"])

    def update(self, watched: Watched, state: dict[str, Any], gradient: Tensor) -> Tensor:
        """U of ∇."""
        a, b = state["a"], state["b"]
        share = (b @ gradient @ a) / (self.damping + a.square().sum() * b.square().sum())
        return torch.addr(gradient, share * b, a, alpha=-1) / self.damping

    def mean_curvature(self, param: Tensor) -> tuple[Tensor, float] | None:
        """See `PreconditionedSGD.mean_curvature`."""
        if param not in self.layers:
            return None
        a, b = self.state[param]["a"], self.state[param]["b"]
        return a.square().mean() * b.square().mean(), self.damping
