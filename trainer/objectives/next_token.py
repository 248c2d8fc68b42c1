"""Cross-entropy of language models, from logits that exist all at once or in pieces."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data import Batch
from trainer.objectives.base import OBJECTIVES, Network, Supervised, wide
from trainer.options import MAY_DIFFER, Count, Fraction


@OBJECTIVES.register("next_token")
@dataclass(frozen=True, kw_only=True)
class NextToken(Supervised):
    """Cross-entropy in nats per token of logits [B, T, V] against next tokens [B, T]; perplexity.

    Args:
        label_smoothing: as of `CrossEntropy`.
        loss_chunks: pieces of the sequences whose logits exist at a time; None: ``loop.loss_chunks``. Other than 1 only
            for a model that has the tag ``pieces``.
    """

    label_smoothing: Fraction | None = None
    loss_chunks: Annotated[Literal["auto"] | Count | None, MAY_DIFFER] = None

    logits_of = "tokens"

    def loss(self, model: Network, batch: Batch) -> tuple[Tensor, Tensor]:
        """As of the base."""
        if self.loss_chunks in (None, 1):
            return super().loss(model, batch)
        inputs, targets = batch

        def read(logits: Tensor, place: slice) -> Tensor:
            loss, totals = self.of_outputs(logits, inputs[:, place], targets[:, place])
            return torch.cat([(loss * logits.shape[:2].numel())[None], totals])

        loss, totals = model(inputs, pieces=self.loss_chunks, read=read).tensor_split([1])
        return loss[0] / targets.numel(), totals.detach()

    def of_outputs(self, outputs: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As of the base; the totals are loss and tokens."""
        logits, smoothing = wide(outputs).flatten(0, 1), self.label_smoothing or 0.0  # [B T, V]
        loss = F.cross_entropy(logits, targets.flatten(), label_smoothing=smoothing, reduction="sum")
        count = targets.numel()
        return loss / count, torch.stack([loss.detach(), loss.new_tensor(count)])

    def metrics(self, totals: Tensor) -> dict[str, float]:
        """``loss`` in nats per token, and ``perplexity``, its exponential."""
        loss = totals[0].item() / totals[-1].item()
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}  # exp(710) overflows a float

    def for_evaluation(self) -> "NextToken":
        """Without label smoothing."""
        return replace(self, label_smoothing=None)
