"""What an optimizer may offer the trainer beyond `torch.optim.Optimizer`, found by ``isinstance``.

An optimizer need not know of these protocols: it implements one by having its members.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer


class CurvatureSource(Protocol):
    """Where the curvature of a parameter comes from, and what it is used for."""

    @property
    def parameter(self) -> str:
        """The parameter's name in the model."""

    @property
    def source(self) -> str:
        """Such as the type of its layer."""

    @property
    def update(self) -> str:
        """The kind of step that the parameter takes."""


class StateLayout(Protocol):
    """What a tensor of a parameter's state is, and how it is stored."""

    @property
    def is_factor(self) -> bool:
        """Whether it is a factor of the curvature."""

    @property
    def is_sharded(self) -> bool:
        """Whether its rows go with those of the parameter, where FSDP shards that; else every rank holds all."""


@runtime_checkable
class CurvatureOptimizer(Protocol):
    """Preconditions by factors of the curvature that it refreshes now and then."""

    @property
    def needs_refresh(self) -> bool:
        """Whether the next step refreshes the factors."""

    def diagnostics(self) -> Mapping[str, Mapping[str, float]]:
        """Numbers on the curvature of each layer, at the last refresh; every rank calls it."""

    def coverage(self) -> Sequence[CurvatureSource]:
        """One row for each trained parameter."""

    def state_layout(self, param: Tensor) -> Mapping[str, StateLayout]:
        """The tensors in ``optimizer.state[param]``, by key."""


@runtime_checkable
class DiagonalPreconditioner(CurvatureOptimizer, Protocol):
    """Divides each entry of an update by a number of its own."""

    def preconditioner(self, param: Tensor) -> Tensor:
        """What the update of a parameter is divided by, in its shape."""


@runtime_checkable
class ReadsLossScale(Protocol):
    """Reads the loss scale, by which the gradients that layers see are multiplied, of a scaler that it is told."""

    grad_scaler: GradScaler | None


@runtime_checkable
class NeedsGraph(Protocol):
    """May differentiate the gradient once more."""

    needs_create_graph: bool
    """Whether it does, so that ``backward`` must be called with ``create_graph=True``."""


@runtime_checkable
class HasTwoWeights(Protocol):
    """Trains at other weights than those that are the model's result."""

    is_training: bool
    """Whether the model has those that it trains at."""

    def eval(self) -> None:
        """Gives the model those by which it is evaluated and saved."""

    def train(self) -> None:
        """Gives it those that it trains at: to the bit those before `eval`, or after a checkpoint was loaded."""


@runtime_checkable
class TakesTwoGradients(Protocol):
    """Takes the gradient of a step at weights to which a first gradient of the same batch has led."""

    def climb(self, norm: float) -> None:
        """Moves the parameters by their gradients, whose norm over all parameters and ranks this is."""

    def descend(self) -> None:
        """Moves them back, to the bit; their gradients are then those that the step takes."""


@runtime_checkable
class EvaluatesAgain(Protocol):
    """Evaluates the batch of a step several times, by a closure that sets the gradients and gives the loss."""

    evaluates_again: bool
    """True."""


@contextmanager
def evaluation_weights(optimizer: Optimizer) -> Iterator[None]:
    """A context in which the model has the weights by which it is evaluated and saved."""
    if not isinstance(optimizer, HasTwoWeights) or not optimizer.is_training:
        yield
        return
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()


def differentiates_gradient(optimizer: Optimizer) -> bool:
    """Whether an optimizer needs ``backward(create_graph=True)``."""
    return isinstance(optimizer, NeedsGraph) and optimizer.needs_create_graph
