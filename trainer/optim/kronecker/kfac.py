"""K-FAC, and E-KFAC as its option."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.optim.adafisher.layers import Layer
from trainer.optim.base import OPTIMIZERS, Groups
from trainer.optim.kronecker.inverses import average, damped_inverse
from trainer.optim.kronecker.layerwise import FactorInverter, Seen, Watched
from trainer.optim.kronecker.rows import (
    ENTRIES_AT_A_TIME,
    MatrixLayer,
    full_layer,
    gradient_rows,
    input_rows,
    layer_of_sizes,
)
from trainer.options import Count, Fraction, NonNegative, Positive


@OPTIMIZERS.register("kfac")
class KFAC(FactorInverter):
    r"""Preconditions Linear and Conv2d layers by the inverse of their Kronecker-factored empirical Fisher T G ⊗ A.

    With the factors of `rows`, G taking the T rows of a sample, and the gradient ∇ of a layer's weight and bias,
    [rows, columns (+ 1)]:

        π = √((tr A / dim A) / (tr G / dim G))        U = (G + √λ/π I)⁻¹ ∇ (A + π √λ I)⁻¹

    With ``ekfac``, in the eigenbases Q of the factors, by the mean over samples n of their squared gradients:

        Σ = mean (Q_Gᵀ ∇ₙ Q_A)²                       U = Q_G [(Q_Gᵀ ∇ Q_A) / (Σ + λ)] Q_Aᵀ

    where all rows of a sample count together in one call of a layer. Σ is estimated in the step after the factors;
    in new bases it begins with the products of their eigenvalues. Then come clipping and momentum as in
    `PreconditionedSGD`. The defaults are the published settings of AdaFisher's comparison for convolutional networks.

    Args:
        model: the model that owns the parameters.
        params: groups of named parameters.
        lr, momentum, weight_decay, clip_norm, kl_clip: see `PreconditionedSGD`.
        damping: λ > 0.
        factor_decay: weight of the old factors in their average, 0 ≤ x < 1; 0 takes the newest.
        factor_interval: steps between refreshes of the factors, ≥ 1; with ``ekfac`` ≥ 2.
        inverse_interval: steps between inversions, ≥ 1; with ``ekfac`` between eigendecompositions, a multiple of
            ``factor_interval``: those of old factors would change no basis and only forget Σ.
        ekfac: corrects the eigenvalues.
        largest_factor: a layer with a longer side takes the plain gradient.

    State of a layer's weight besides momentum: ``A``, ``G``; ``A_inverse`` and ``G_inverse``, or with ``ekfac``
    ``A_basis``, ``G_basis`` and ``eigenvalues`` [rows, columns (+ 1)].

    Raises:
        ConfigError: the parameters are sharded, or ``ekfac`` has no step for Σ or would forget it.

    References: Martens and Grosse 2015, arXiv 1503.05671; George et al. 2018, arXiv 1806.03884.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Groups,
        *,
        lr: NonNegative = 0.3,
        momentum: Fraction = 0.9,
        weight_decay: NonNegative = 5e-4,
        damping: Positive = 1e-3,
        factor_decay: Fraction = 0.0,
        factor_interval: Count = 10,
        inverse_interval: Count = 10,
        ekfac: bool = False,
        clip_norm: Positive | None = 1.0,
        kl_clip: Positive | None = None,
        largest_factor: Count = 8192,
    ) -> None:
        if ekfac and factor_interval < 2:
            raise ConfigError(
                "optimizer.ekfac=true estimates eigenvalues in the step after the factors: "
                f"optimizer.factor_interval={factor_interval} must be >= 2"
            )
        if ekfac and inverse_interval % factor_interval:
            raise ConfigError(
                f"optimizer.ekfac=true takes bases of new factors only: optimizer.inverse_interval={inverse_interval} "
                f"must be a multiple of optimizer.factor_interval={factor_interval}"
            )
        self.damping, self.factor_decay, self.ekfac = damping, factor_decay, ekfac
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

    @property
    def needs_refresh(self) -> bool:
        """Whether the coming step refreshes factors, inverses or eigenvalues."""
        return super().needs_refresh or self._takes_eigenvalues

    @property
    def _takes_eigenvalues(self) -> bool:
        return self.ekfac and self.steps % self.factor_interval == 1

    def described(self, watched: Watched) -> Layer | None:
        """Makes A and G of the rows, or Σ."""
        if self.takes_factors:
            return full_layer(watched.module)
        state = self.state[watched.weight]
        if not self._takes_eigenvalues or not state["refreshes"]:
            return None
        return projected_layer(watched, state["A_basis"], state["G_basis"])

    def new_factors(self, watched: Watched, options: Mapping[str, Any]) -> dict[str, Any]:
        """Zero, since nothing is known."""
        rows, columns = watched.size
        A, G = torch.zeros(columns, columns, **options), torch.zeros(rows, rows, **options)
        kind = "basis" if self.ekfac else "inverse"
        state: dict[str, Any] = {"A": A, "G": G}
        state |= {f"A_{kind}": torch.zeros_like(A), f"G_{kind}": torch.zeros_like(G)}
        if self.ekfac:
            state |= {"eigenvalues": torch.zeros(rows, columns, **options), "estimates": 0}
        return state

    def take(self, watched: Watched, seen: Seen, state: dict[str, Any]) -> None:
        """Takes factors, or Σ, into their averages."""
        if self.takes_factors:
            state["refreshes"] += 1
            average(state["A"], seen.H, self.factor_decay, state["refreshes"])
            average(state["G"], seen.S * seen.rows_per_sample, self.factor_decay, state["refreshes"])
        else:
            state["estimates"] += 1
            average(state["eigenvalues"], seen.S, self.factor_decay, state["estimates"])

    def invert(self, state: dict[str, Any]) -> None:
        """Inverts both factors, or takes their eigenbases and begins Σ anew."""
        self._decompose(state) if self.ekfac else self._invert(state)

    def _invert(self, state: dict[str, Any]) -> None:
        A, G, root = state["A"], state["G"], self.damping**0.5
        means = A.diagonal().mean(), G.diagonal().mean()
        pi = (means[0] / means[1]).sqrt() if means[0] > 0 and means[1] > 0 else 1.0
        state["A_inverse"].copy_(damped_inverse(A, pi * root))
        state["G_inverse"].copy_(damped_inverse(G, root / pi))

    def _decompose(self, state: dict[str, Any]) -> None:
        values = {}
        for factor in "A", "G":
            values[factor], basis = torch.linalg.eigh(state[factor])
            state[f"{factor}_basis"].copy_(basis)
        state["eigenvalues"].copy_(torch.outer(values["G"], values["A"]).clamp_(min=0))
        state["estimates"] = 0

    def update(self, watched: Watched, state: dict[str, Any], gradient: Tensor) -> Tensor:
        """U of ∇."""
        if not self.ekfac:
            return state["G_inverse"] @ gradient @ state["A_inverse"]
        Q_A, Q_G = state["A_basis"], state["G_basis"]
        return Q_G @ (Q_G.mT @ gradient @ Q_A / (state["eigenvalues"] + self.damping)) @ Q_A.mT

    def mean_curvature(self, param: Tensor) -> tuple[Tensor, float] | None:
        """See `PreconditionedSGD.mean_curvature`."""
        if param not in self.layers:
            return None
        state = self.state[param]
        return state["A"].diagonal().mean() * state["G"].diagonal().mean(), self.damping


def projected_layer(watched: Watched, A_basis: Tensor, G_basis: Tensor) -> Layer:
    """A layer whose S is Σ in these bases: the mean square over the samples of their projected gradients."""
    rows, columns = watched.size

    def joint(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return A_basis.new_ones(1), mean_projected_square(watched.module, x, s, A_basis, G_basis)

    # the input is kept as it is, as autograd does: what is made of it is larger
    return layer_of_sizes(
        watched.module, lambda x, output: x, lambda s: s, ((1,), (rows, columns)), joint=joint
    )


def mean_projected_square(
    module: MatrixLayer, x: Tensor, s: Tensor, A_basis: Tensor, G_basis: Tensor
) -> Tensor:
    """mean (Q_Gᵀ ∇ₙ Q_A)² over the samples n of a call, [rows, columns]; ∇ₙ by the gradient s of the output."""
    vectors = 3 if isinstance(module, nn.Conv2d) else 1  # axes of one sample
    if s.dim() == vectors:
        x, s = x[None], s[None]
    samples, rows, columns = len(s), len(G_basis), len(A_basis)
    per_sample = s[0].numel() // rows
    total = A_basis.new_zeros(rows, columns)
    at_a_time = max(1, ENTRIES_AT_A_TIME // (columns * max(per_sample, rows)))
    for x_part, s_part in zip(x.split(at_a_time), s.split(at_a_time), strict=True):
        h = (input_rows(module, x_part).to(A_basis.dtype) @ A_basis).unflatten(0, (-1, per_sample))
        g = (gradient_rows(module, s_part).to(G_basis.dtype) @ G_basis).unflatten(0, (-1, per_sample))
        if per_sample == 1:
            total += g[:, 0].square().T @ h[:, 0].square()
        else:
            total += (g.mT @ h).square().sum(0)
    return total / samples
