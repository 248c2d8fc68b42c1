"""FOOF: K-FAC without the factor of the output."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainer.optim.adafisher.layers import Layer
from trainer.optim.adafisher.mean_squares import factor_dtype
from trainer.optim.base import OPTIMIZERS, Groups
from trainer.optim.kronecker.inverses import average, damped_inverse
from trainer.optim.kronecker.layerwise import FactorInverter, Seen, Watched
from trainer.optim.kronecker.rows import columns_of, input_moment, layer_of_sizes
from trainer.options import Count, Fraction, NonNegative, Positive


@OPTIMIZERS.register("foof")
class FOOF(FactorInverter):
    r"""Preconditions Linear and Conv2d layers by the second moment A of the rows that they multiply:

        U = ∇ (A + λ I)⁻¹

    with the gradient ∇ of a layer's weight and bias, [rows, columns (+ 1)]. Then come clipping and momentum as in
    `PreconditionedSGD`.

    Args:
        model: the model that owns the parameters.
        params: groups of named parameters.
        lr, momentum, weight_decay, clip_norm, kl_clip: see `PreconditionedSGD`.
        damping: λ > 0.
        factor_decay: weight of the old A in its average, 0 ≤ x < 1.
        factor_interval: steps between refreshes of A, ≥ 1.
        inverse_interval: steps between inversions, ≥ 1.
        largest_factor: a layer with more columns takes the plain gradient.

    State of a layer's weight besides momentum: ``A`` and ``A_inverse``.

    Raises:
        ConfigError: the parameters are sharded.

    Reference: Benzing 2022, arXiv 2201.12250.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Groups,
        *,
        lr: NonNegative = 0.1,
        momentum: Fraction = 0.9,
        weight_decay: NonNegative = 0.0,
        damping: Positive = 0.1,
        factor_decay: Fraction = 0.95,
        factor_interval: Count = 10,
        inverse_interval: Count = 10,
        clip_norm: Positive | None = 1.0,
        kl_clip: Positive | None = None,
        largest_factor: Count = 8192,
    ) -> None:
        self.damping, self.factor_decay = damping, factor_decay
        self.factor_interval, self.inverse_interval = factor_interval, inverse_interval
        self.largest_factor = largest_factor
        super().__init__(
            model,
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            kl_clip=kl_clip,
        )

    def sides(self, rows: int, columns: int) -> tuple[int, ...]:
        """A's."""
        return (columns,)

    def described(self, watched: Watched) -> Layer | None:
        """Makes A of the rows."""
        if not self.takes_factors:
            return None
        module, columns, dtype = (
            watched.module,
            columns_of(watched.module),
            factor_dtype(watched.weight.dtype),
        )
        return layer_of_sizes(
            module,
            partial(input_moment, module),
            lambda s: torch.zeros(1, dtype=dtype, device=s.device),  # the gradient does not count
            ((columns, columns), (1,)),
        )

    def new_factors(self, watched: Watched, options: Mapping[str, Any]) -> dict[str, Tensor]:
        """Zero, since nothing is known."""
        _, columns = watched.size
        return {name: torch.zeros(columns, columns, **options) for name in ("A", "A_inverse")}

    def invert(self, state: dict[str, Any]) -> None:
        """(A + λ I)⁻¹."""
        state["A_inverse"].copy_(damped_inverse(state["A"], self.damping))

    def take(self, watched: Watched, seen: Seen, state: dict[str, Any]) -> None:
        """Takes A into its average."""
        state["refreshes"] += 1
        average(state["A"], seen.H, self.factor_decay, state["refreshes"])

    def update(self, watched: Watched, state: dict[str, Any], gradient: Tensor) -> Tensor:
        """U of ∇."""
        return gradient @ state["A_inverse"]

    def mean_curvature(self, param: Tensor) -> tuple[Tensor, float] | None:
        """See `PreconditionedSGD.mean_curvature`."""
        return (self.state[param]["A"].diagonal().mean(), self.damping) if param in self.layers else None
