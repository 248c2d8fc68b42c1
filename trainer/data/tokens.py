"""Tokens packed to a fixed length: each sample is a part of one long sequence."""

import numpy as np
import torch
from torch import Tensor

from trainer.data.base import Batch, Split


class PackedTokens(Split):
    """One sequence on the device, cut into samples of equal length, without gaps; the rest is left out.

    Args:
        tokens: integers [L].
        context_length: T, the tokens a sample has; the targets are the tokens one position later.
    """

    def __init__(self, tokens: np.ndarray, context_length: int, device: torch.device) -> None:
        self.tokens = torch.from_numpy(tokens).to(device)
        self.context_length = context_length
        self._span = torch.arange(context_length + 1)

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context_length

    def batch(self, indices: Tensor, key: int | None) -> Batch:
        """Returns tokens, int64 [B, T], and the tokens after each of them, int64 [B, T]."""
        places = indices[:, None] * self.context_length + self._span  # [B, T + 1]
        stretch = self.tokens[places.to(self.tokens.device)].long()
        return stretch[:, :-1].contiguous(), stretch[:, 1:].contiguous()  # [B, T] each
