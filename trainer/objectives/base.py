"""The registry of objectives and their interface."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from trainer.data import Batch
from trainer.registry import Registry

OBJECTIVES = Registry("objective", entry_points="trainer.objectives", refusals=(ValueError,))
"""Objectives by name, subclasses of `Objective`; their keyword-only arguments are the options of ``objective=NAME``.
The tag ``runs`` names those that lead to networks of other runs: a run goes on with the same checkpoints only."""

Network = Callable[..., Any]
"""A model, or what wraps it for training."""

Self = TypeVar("Self", bound="Objective")


class Objective:
    """Base of the objectives. They add up *totals*: a float tensor of one dimension, whose last entry counts samples.

    Metrics are computed from the sum of the totals of all batches on all ranks, so that they are exact however the
    samples are spread. `trainer.metrics.register_metric` says in which direction a metric is better.
    """

    primary: str = "loss"
    """The metric by which the best model is picked."""
    logits_of: Literal["classes", "tokens"] | None = None
    """What the model's outputs are logits of, so that predictions or sample texts can be shown; None: of neither."""

    def loss(self, model: Network, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean loss of a model over a batch, and the totals from which `metrics` are computed.

        Args:
            model: to be called once, as each of its calls may cost communication.
            batch: inputs and targets as the data give them.

        Returns:
            The loss, a scalar with a gradient, and the totals, [n], without one. An empty batch has totals of zero;
            its loss is not a number.
        """
        raise NotImplementedError

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """The metrics by name, ``loss`` and `primary` among them, from the sum of any number of totals."""
        loss, count = totals[0].item(), totals[-1].item()
        return {"loss": loss / count}

    def for_evaluation(self: Self) -> "Self | Objective":
        """The objective by which a model is evaluated: without what is done for the sake of training alone."""
        return self

    def attach(self, network_of: Callable[[str], nn.Module]) -> None:
        """Before training: takes the trained networks of other runs that it needs.

        Args:
            network_of: gives the network of the run, or the checkpoint, of that path, on the device, frozen.
        """


class Supervised(Objective):
    """Base of the objectives that compare a model's outputs with targets."""

    def loss(self, model: Network, batch: Batch) -> tuple[Tensor, Tensor]:
        """As of the base, of all outputs at once."""
        inputs, targets = batch
        return self.of_outputs(model(inputs), inputs, targets)

    def of_outputs(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `loss`, given the model's outputs, [B, ...].

        Raises:
            ValueError: the outputs do not fit the targets.
        """
        raise NotImplementedError


@OBJECTIVES.register("auto")
class Auto(Objective):
    """Stands in a config for the objective that the model is registered with, which the trainer puts in its place."""


DEFAULTS: dict[str, dict[str, Any]] = {
    "classification": {"name": "cross_entropy"},
    "language": {"name": "next_token"},
    "reconstruction": {"name": "mse", "against": "inputs"},
}
"""What ``objective=auto`` is for models that are registered with one of these words."""


def default_objective(tag: str) -> dict[str, Any]:
    """The config of the objective that a model is registered with: one of `DEFAULTS`, or the name of an objective.

    Raises:
        ConfigError: there is none of that name, or it has an option without a default.
    """
    return OBJECTIVES.check(DEFAULTS.get(tag, {"name": tag}))


def wide(outputs: Tensor) -> Tensor:
    """The outputs in float32, or in float64 if they are in that."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def of_all_classes(outputs: Tensor, targets: Tensor) -> Tensor:
    """Shares of fewer classes than outputs, [B, k] and [B, K], with zeros for the others; other targets as they are."""
    if not (outputs.dim() == targets.dim() == 2 and targets.is_floating_point()):
        return targets
    missing = outputs.shape[1] - targets.shape[1]
    # what does not add up to one is no shares, such as a regression's targets, which do not fit
    if missing > 0 and torch.allclose(targets.sum(1), targets.new_ones(len(targets))):
        return nn.functional.pad(targets, (0, missing))
    return targets


def targets_like(outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets in the shape of the outputs: as they are, of all classes, or class numbers [B] as one-hot vectors [B, K].

    Raises:
        ValueError: they cannot be compared.
    """
    targets = of_all_classes(outputs, targets)
    if targets.shape == outputs.shape:
        return targets.to(outputs.dtype)
    if targets.dtype == torch.int64 and outputs.shape[:-1] == targets.shape and outputs.dim() > 1:
        return nn.functional.one_hot(targets, outputs.shape[-1]).to(outputs.dtype)
    raise ValueError(f"outputs {list(outputs.shape)} do not fit targets {list(targets.shape)}")
