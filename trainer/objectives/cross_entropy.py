"""Cross-entropy of classifiers."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.objectives.base import OBJECTIVES, Supervised, of_all_classes, wide
from trainer.options import Fraction

NAMES = ("loss", "accuracy", "top5_accuracy")


@OBJECTIVES.register("cross_entropy")
@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Supervised):
    """Cross-entropy of logits [B, K] against classes [B]; accuracy, and top-5 accuracy where K > 5.

    Targets may be shares of the classes, [B, K] or of the first of them alone, as of mixed images: the class with the
    largest share is the right one.

    Args:
        label_smoothing: share of the target probability that is spread over all classes, in training only; None:
            ``loop.label_smoothing``.
    """

    label_smoothing: Fraction | None = None

    primary = "accuracy"
    logits_of = "classes"

    def of_outputs(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As of the base; the totals are loss, correct predictions, also among the five best if K > 5, and samples."""
        smoothing, logits = self.label_smoothing or 0.0, wide(outputs)
        targets = of_all_classes(logits, targets)
        shares = targets.to(logits.dtype) if targets.is_floating_point() else targets
        loss = F.cross_entropy(logits, shares, label_smoothing=smoothing, reduction="sum")
        if targets.is_floating_point():
            targets = targets.argmax(-1)
        outputs, count = outputs.detach(), targets.numel()
        counts = [(outputs.argmax(-1) == targets).sum()]
        if outputs.shape[-1] > 5:
            counts.append((outputs.topk(5).indices == targets[:, None]).sum())
        return loss / count, torch.stack([loss.detach(), *counts, loss.new_tensor(count)])

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """``loss``; ``accuracy`` and, of more than five classes, ``top5_accuracy``, from 0 to 1."""
        *sums, count = totals.tolist()
        return {name: value / count for name, value in zip(NAMES, sums, strict=False)}

    def for_evaluation(self) -> "CrossEntropy":
        """Without label smoothing."""
        return CrossEntropy()
