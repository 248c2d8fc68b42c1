"""What a model is trained for: its loss, and the metrics by which it is judged."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """Base of the objectives. They add up *totals*: a float tensor whose last entry counts samples."""

    primary: ClassVar[str] = "loss"
    """The metric by which the best model is picked."""

    label_smoothing: float = 0.0

    def __call__(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss over the batch, a scalar, and the batch's totals, of shape [2] or [3]."""
        raise NotImplementedError

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """Means from added totals."""
        loss, count = totals[0].item(), totals[-1].item()
        return {"loss": loss / count}


class Classification(Objective):
    """Cross-entropy of logits [B, K] against classes [B]; accuracy as a share of 1."""

    primary = "accuracy"

    def __call__(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss = F.cross_entropy(outputs.float(), targets, label_smoothing=self.label_smoothing)
        correct = (outputs.detach().argmax(-1) == targets).sum()
        count = targets.numel()
        return loss, torch.stack([loss.detach() * count, correct, loss.new_tensor(count)])

    def metrics(self, totals: Tensor) -> dict[str, float]:
        loss, correct, count = totals.tolist()
        return {"loss": loss / count, "accuracy": correct / count}


class Language(Objective):
    """Cross-entropy in nats per token of logits [B, T, V] against next tokens [B, T]; perplexity."""

    def __call__(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = outputs.float().flatten(0, 1)  # [B T, V]
        loss = F.cross_entropy(logits, targets.flatten(), label_smoothing=self.label_smoothing)
        count = targets.numel()
        return loss, torch.stack([loss.detach() * count, loss.new_tensor(count)])

    def metrics(self, totals: Tensor) -> dict[str, float]:
        loss = totals[0].item() / totals[-1].item()
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}  # exp(710) overflows a float


class Reconstruction(Objective):
    """Mean squared error of the output against the input, both [B, ...], per element."""

    def __call__(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss = F.mse_loss(outputs.float(), inputs)
        count = len(inputs)
        return loss, torch.stack([loss.detach() * count, loss.new_tensor(count)])


OBJECTIVES: dict[str, type[Objective]] = {
    "classification": Classification,
    "language": Language,
    "reconstruction": Reconstruction,
}
"""By the tag that a model is registered with."""
