"""The loss of a batch, from logits that exist all at once or in pieces."""

from typing import Literal

import torch
from torch import Tensor, nn

from trainer.training.objectives import Objective


def loss_of(
    module: nn.Module,
    objective: Objective,
    inputs: Tensor,
    targets: Tensor,
    chunks: int | Literal["auto"],
) -> tuple[Tensor, Tensor]:
    """The mean loss of a model over a batch, and its totals, as `Objective` gives them.

    Args:
        module: the model, or what wraps it.
        objective: a mean over tokens, where there are chunks.
        inputs, targets: of the batch.
        chunks: pieces of the sequences whose logits exist at a time; but for 1, of a model that has the tag ``pieces``.
    """
    if chunks == 1:
        return objective(module(inputs), inputs, targets)

    def read(logits: Tensor, place: slice) -> Tensor:
        loss, totals = objective(logits, inputs[:, place], targets[:, place])
        return torch.cat([(loss * logits.shape[:2].numel())[None], totals])

    loss, totals = module(inputs, pieces=chunks, read=read).tensor_split([1])
    return loss[0] / targets.numel(), totals.detach()
