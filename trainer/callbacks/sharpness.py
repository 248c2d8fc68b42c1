"""Sharpness: the largest eigenvalue of the Hessian of the training loss."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer.callbacks.base import CALLBACKS, Callback, Setup, Training
from trainer.errors import ConfigError
from trainer.options import Count, Positive

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix, as the product with a vector."""


@CALLBACKS.register("sharpness", may_differ=True)
class Sharpness(Callback):
    """Reports ``sharpness/largest_eigenvalue`` at each evaluation, of the loss over fixed training samples.

    By power iteration on Hessian-vector products; the model is in eval mode. The ranks share the samples; each of them
    holds the graph of its share, twice as large as that of a backward pass.

    Args:
        samples: from all over the training set, without augmentation.
        iterations: at most so many products; each costs about two backward passes.
        tolerance: the iteration ends when the eigenvalue changes by less than this share of it.
    """

    def __init__(self, *, samples: Count = 256, iterations: Count = 50, tolerance: Positive = 1e-3) -> None:
        self.samples, self.iterations, self.tolerance = samples, iterations, tolerance
        self._vector: Tensor | None = None  # of the last evaluation, where the next one begins

    def check(self, setup: Setup) -> None:
        """Refuses sharded parameters."""
        if setup.is_sharded:
            raise ConfigError("callbacks.sharpness needs whole parameters on each rank: use parallel=ddp")

    def after_evaluation(self, training: Training, metrics: Mapping[str, float]) -> None:
        """Computes and reports it."""
        parameters = [p for p in training.model.parameters() if p.requires_grad]
        start = self._vector
        if start is None:
            size = sum(p.numel() for p in parameters)
            start = torch.randn(size, generator=torch.Generator().manual_seed(0))
        start = start.to(parameters[0])
        with sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
            product = hessian(training, parameters, self.samples)
            largest, self._vector = largest_eigenvalue(product, start, self.iterations, self.tolerance)
        training.report({"sharpness/largest_eigenvalue": largest})

    def state_dict(self) -> dict[str, Any]:
        """The eigenvector."""
        return {"vector": self._vector}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes it over."""
        self._vector = state["vector"]


def hessian(training: Training, parameters: Sequence[Tensor], samples: int) -> Product:
    """The Hessian of the mean loss over so many samples, of which each rank takes a share."""
    train = training.data.train
    places = torch.linspace(0, len(train) - 1, min(samples, len(train))).round().long()
    own = places[training.ranks.rank :: training.ranks.world_size]
    sizes = [p.numel() for p in parameters]
    gradients: Sequence[Tensor] = ()
    if len(own):
        with torch.enable_grad():
            loss, _ = training.objective.loss(training.model.eval(), train.batch(own, None))
            share = loss * (len(own) / len(places))
            gradients = torch.autograd.grad(share, parameters, create_graph=True, materialize_grads=True)

    def product(vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        if gradients:
            parts = [part.view_as(p) for part, p in zip(vector.split(sizes), parameters, strict=True)]
            products = torch.autograd.grad(
                gradients, parameters, parts, retain_graph=True, materialize_grads=True
            )
            total = torch.cat([part.reshape(-1) for part in products])
        return training.ranks.sum(total)

    return product


def largest_eigenvalue(
    product: Product, start: Tensor, iterations: int, tolerance: float
) -> tuple[float, Tensor]:
    """The largest eigenvalue, which need not be the largest in size, and its vector, by power iteration.

    Args:
        product: with the matrix.
        start: of the iteration, [n]; not orthogonal to the vector.
        iterations: at most so many products, twice that where the eigenvalue of largest size is negative.
        tolerance: see `Sharpness`.
    """
    value, vector = power_iteration(product, start, iterations, tolerance)
    if value >= 0:
        return value, vector
    # all eigenvalues of the shifted matrix are positive or zero, and their order is the same
    shifted, vector = power_iteration(lambda v: product(v) - value * v, start, iterations, tolerance)
    return shifted + value, vector


def power_iteration(
    product: Product, start: Tensor, iterations: int, tolerance: float
) -> tuple[float, Tensor]:
    """The eigenvalue of largest size and its vector; as `largest_eigenvalue`."""
    vector, value = start / start.norm(), 0.0
    for _ in range(iterations):
        image = product(vector)
        before, value = value, (vector @ image).item()
        length = image.norm()
        if not length:
            break
        vector = image / length
        if abs(value - before) <= tolerance * abs(value):
            break
    return value, vector
