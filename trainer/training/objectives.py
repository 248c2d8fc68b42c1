"""Objectives: the loss that a model minimises, and the metrics by which it is judged."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """Base of the objectives. They add up *totals*: a float tensor whose last entry counts samples.

    An empty batch has totals of zero; its loss is not a number.

    Args:
        label_smoothing: the share of the target probability that is spread over all classes, in [0, 1).
    """

    primary: ClassVar[str] = "loss"
    """The metric by which the best model is picked."""
    reads: ClassVar[Literal["images", "tokens"]] = "images"
    """The kind of data that models with this objective take."""

    label_smoothing: float = 0.0

    def __call__(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss over a batch, and the totals from which `metrics` are computed.

        Args:
            outputs: of the model, [B, ...].
            inputs: of the model, [B, ...].
            targets: as the data gives them.

        Returns:
            The loss, a scalar with a gradient, and the totals, [2] to [4], without one.
        """
        raise NotImplementedError

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """The metrics by name, such as ``loss``, from the sum of the totals of any number of batches."""
        loss, count = totals[0].item(), totals[-1].item()
        return {"loss": loss / count}


class Classification(Objective):
    """Cross-entropy of logits [B, K] against classes [B]; accuracy, and top-5 accuracy where K > 5.

    Targets may be shares of the classes, [B, K], as of mixed images: the class with the largest share is the right one.
    """

    primary = "accuracy"
    names = ("loss", "accuracy", "top5_accuracy")

    def __call__(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As of the base; the totals are loss, correct predictions, also among the five best if K > 5, and samples."""
        smoothing, logits = self.label_smoothing, wide(outputs)
        if targets.is_floating_point():
            shares, targets = targets.to(logits.dtype), targets.argmax(-1)
            loss = F.cross_entropy(logits, shares, label_smoothing=smoothing, reduction="sum")
        else:
            loss = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
        outputs, count = outputs.detach(), targets.numel()
        counts = [(outputs.argmax(-1) == targets).sum()]
        if outputs.shape[-1] > 5:
            counts.append((outputs.topk(5).indices == targets[:, None]).sum())
        return loss / count, torch.stack([loss.detach(), *counts, loss.new_tensor(count)])

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """``loss``; ``accuracy`` and, of more than five classes, ``top5_accuracy``, from 0 to 1."""
        *sums, count = totals.tolist()
        return {name: value / count for name, value in zip(self.names, sums, strict=False)}


class Language(Objective):
    """Cross-entropy in nats per token of logits [B, T, V] against next tokens [B, T]; perplexity."""

    reads = "tokens"

    def __call__(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As of the base; the totals are loss and tokens."""
        logits, smoothing = wide(outputs).flatten(0, 1), self.label_smoothing  # [B T, V]
        loss = F.cross_entropy(logits, targets.flatten(), label_smoothing=smoothing, reduction="sum")
        count = targets.numel()
        return loss / count, torch.stack([loss.detach(), loss.new_tensor(count)])

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """``loss`` in nats per token, and ``perplexity``, its exponential."""
        loss = totals[0].item() / totals[-1].item()
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}  # exp(710) overflows a float


class Reconstruction(Objective):
    """Mean squared error of the output against the input, both [B, ...], per element."""

    def __call__(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As of the base; the totals are loss and samples."""
        loss = F.mse_loss(wide(outputs), inputs, reduction="sum") / inputs[0:1].numel()
        count = len(inputs)
        return loss / count, torch.stack([loss.detach(), loss.new_tensor(count)])


def wide(outputs: Tensor) -> Tensor:
    """The outputs in float32, or in float64 if they are in that."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()


OBJECTIVES: dict[str, type[Objective]] = {
    "classification": Classification,
    "language": Language,
    "reconstruction": Reconstruction,
}
"""By the tag that a model is registered with."""
