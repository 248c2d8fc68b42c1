"""Objectives that compare outputs and targets element by element."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.objectives.base import OBJECTIVES, Supervised, targets_like, wide


@OBJECTIVES.register("mse")
@dataclass(frozen=True, kw_only=True)
class MeanSquaredError(Supervised):
    """Mean squared error per element, of outputs [B, ...] against targets of the same shape.

    Args:
        against: the targets, of which class numbers count as one-hot vectors; or the inputs, as of an autoencoder.
    """

    against: Literal["targets", "inputs"] = "targets"

    def of_outputs(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As of the base; the totals are loss and samples."""
        outputs = wide(outputs)
        expected = targets_like(outputs, inputs if self.against == "inputs" else targets)
        loss = F.mse_loss(outputs, expected, reduction="sum") / outputs[0:1].numel()
        count = len(outputs)
        return loss / count, torch.stack([loss.detach(), loss.new_tensor(count)])


@OBJECTIVES.register("bce")
@dataclass(frozen=True, kw_only=True)
class BinaryCrossEntropy(Supervised):
    """Binary cross-entropy per element, of logits [B, K] against labels [B, K] from 0 to 1; accuracy.

    Class numbers [B] count as one-hot vectors, and then accuracy is that of the largest logit; of several labels a
    sample, and so of shares of the classes, it is the share of the labels on whose side of one half the prediction is.
    """

    primary = "accuracy"

    def of_outputs(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As of the base; the totals are loss, accuracy summed over samples, and samples."""
        outputs = wide(outputs)
        labels = targets_like(outputs, targets)
        count = len(outputs)
        each = outputs[0:1].numel()
        loss = F.binary_cross_entropy_with_logits(outputs, labels, reduction="sum") / each
        if targets.dim() == labels.dim():
            right = ((outputs > 0) == (labels > 0.5)).sum() / each
        else:
            right = (outputs.argmax(-1) == targets).sum()
        return loss / count, torch.stack([loss.detach(), right.to(loss.dtype), loss.new_tensor(count)])

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """``loss``, and ``accuracy`` from 0 to 1."""
        loss, right, count = totals.tolist()
        return {"loss": loss / count, "accuracy": right / count}
