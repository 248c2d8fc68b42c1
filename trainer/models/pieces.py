"""Logits in pieces: those of a large vocabulary never exist at once, in the forward pass or in the backward pass."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PIECE_BYTES = 2**28
"""Of the float32 logits of a piece, where their number is ``auto``."""

Read = Callable[[Tensor, slice], Tensor]
"""Takes the logits of a piece, [B, T', V], and where its tokens are in the sequence; gives totals to be added up."""


def read_in_pieces(head: nn.Linear, hidden: Tensor, pieces: int | Literal["auto"], read: Read) -> Tensor:
    """The sum of what ``read`` makes of the logits, one stretch of the sequences after the other.

    The backward pass computes the logits of each piece again. Hooks on the head see every row once: the samples of
    each piece are all of the batch, its tokens a part of theirs.

    Args:
        head: makes logits.
        hidden: its inputs, [B, T, width].
        pieces: at most T; ``auto``: as many as keep the logits of each below `PIECE_BYTES`.
        read: called for each piece.
    """
    batch, time, _ = hidden.shape
    number = math.ceil(4 * batch * time * head.out_features / PIECE_BYTES) if pieces == "auto" else pieces

    def totals(part: Tensor, place: slice) -> Tensor:
        return read(head(part), place)

    start, sums = 0, []
    for part in hidden.tensor_split(min(number, time), dim=1):
        place = slice(start, start + part.shape[1])
        sums.append(checkpoint(totals, part, place, use_reentrant=False, preserve_rng_state=False))
        start = place.stop
    return torch.stack(sums).sum(0)
