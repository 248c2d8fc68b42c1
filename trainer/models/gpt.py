"""GPT: a pre-norm decoder-only transformer with learned positions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.models.base import MODELS, required_from_data
from trainer.options import Count, Fraction


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        batch, time, width = x.shape
        qkv = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads)  # [B, T, 3, heads, D]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, D]
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)  # [B, heads, T, D]
        return self.out(x.transpose(1, 2).reshape(batch, time, width))  # [B, T, width]


class Block(nn.Module):
    """Attention, then an MLP four times as wide, each on a normalised copy that is added back."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))  # [B, T, width]
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # [B, T, width]


@MODELS.register("gpt", objective="language")
class GPT(nn.Module):
    """Tokens [B, T] -> logits [B, T, vocab_size] of the token after each.

    12 layers of width 768 with 12 heads, a vocabulary of 50257 and 1024 positions make GPT-2 (124,439,808
    parameters).

    Raises:
        ConfigError: the width is not a multiple of the heads, or a sequence exceeds ``context_length``.
    """

    def __init__(
        self,
        *,
        layers: Count = 4,
        width: Count = 128,
        heads: Count = 4,
        dropout: Fraction = 0.0,
        tied: bool = True,
        vocab_size: Count | None = None,
        context_length: Count | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"model.width={width} must be a multiple of model.heads={heads}")
        vocab_size = required_from_data("vocab_size", vocab_size)
        self.context_length = required_from_data("context_length", context_length)
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(self.context_length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self._initialise()
        if tied:
            self.head.weight = self.tokens.weight

    def _initialise(self) -> None:
        """GPT-2's: N(0, 0.02), and less for what is added to the residual stream, which would grow with depth."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.2.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * len(self.blocks)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens, int64 [B, T] -> logits [B, T, vocab_size]; T is at most ``context_length``."""
        time = tokens.shape[1]
        if time > self.context_length:
            raise ConfigError(
                f"model.context_length={self.context_length} is less than the {time} tokens of a sequence"
            )
        # [B, T]: looked up for each sample, so that hooks on the layer see one row for each sample
        positions = torch.arange(time, device=tokens.device).expand(tokens.shape)
        x = self.dropout(self.tokens(tokens) + self.positions(positions))  # [B, T, width]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # [B, T, vocab_size]
