"""The block of a decoder-only transformer, from GPT-2's to Llama's, and the cache by which it goes on with a text."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class BlockOptions:
    """What a block is made of; `trainer.models.gpt.GPT` describes the options."""

    width: int
    heads: int
    kv_heads: int
    mlp_width: int
    dropout: float
    norm: Literal["layer", "rms"]
    rope: bool
    rope_base: float
    mlp: Literal["gelu", "gelu_tanh", "swiglu"]
    qk_norm: bool
    bias: bool

    def make_norm(self, width: int) -> nn.Module:
        """A norm over that many values."""
        if self.norm == "rms":
            return nn.RMSNorm(width, eps=1e-5)
        return nn.LayerNorm(width, bias=self.bias)

    def make_mlp(self) -> nn.Module:
        """[..., width] -> [..., width]."""
        if self.mlp == "swiglu":
            return SwiGLU(self.width, self.mlp_width, bias=self.bias)
        return nn.Sequential(
            nn.Linear(self.width, self.mlp_width, bias=self.bias),
            nn.GELU(approximate="tanh" if self.mlp == "gelu_tanh" else "none"),
            nn.Linear(self.mlp_width, self.width, bias=self.bias),
        )


class KeyValueCache:
    """Keys and values of the tokens that a model has seen, so that it is given only those that come next."""

    def __init__(self) -> None:
        self.length = 0
        """Tokens seen; the model counts them at the end of its forward pass."""
        self._tokens: Tensor | None = None
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def remember(self, tokens: Tensor) -> Tensor:
        """Returns all tokens, [B, T], given the next ones: for a model that tells documents apart by them."""
        self._tokens = tokens if self._tokens is None else torch.cat([self._tokens, tokens], 1)
        return self._tokens

    def extend(self, layer: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a layer's keys and values of all tokens, [B, heads, T, D] each, given those of the next ones."""
        if layer in self._kept:
            before_k, before_v = self._kept[layer]
            k, v = torch.cat([before_k, k], 2), torch.cat([before_v, v], 2)
        self._kept[layer] = (k, v)
        return k, v


class Attention(nn.Module):
    """Causal self-attention; several heads of queries may share one of keys and values."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        self.heads, self.kv_heads = options.heads, options.kv_heads
        self.head_width = options.width // options.heads
        self.dropout = options.dropout
        self.rope_base = options.rope_base if options.rope else None
        rows = (self.heads + 2 * self.kv_heads) * self.head_width
        self.qkv = nn.Linear(options.width, rows, bias=options.bias)
        self.out = nn.Linear(options.width, options.width, bias=options.bias)
        self.q_norm = options.make_norm(self.head_width) if options.qk_norm else None
        self.k_norm = options.make_norm(self.head_width) if options.qk_norm else None

    def forward(self, x: Tensor, cache: KeyValueCache | None = None, mask: Tensor | None = None) -> Tensor:
        """[B, T, width] -> [B, T, width]; with a cache that is not empty, T is 1.

        Args:
            x: normalised, of each token.
            cache: of the tokens before.
            mask: which tokens each one sees, bool, [B, 1, T, all]; None: itself and those before.
        """
        qkv = self.qkv(x).unflatten(-1, (-1, self.head_width))  # [B, T, heads, D]
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # [B, heads, T, D]
        if self.rope_base is not None:
            start = 0 if cache is None else cache.length
            q, k = rotate(q, start, self.rope_base), rotate(k, start, self.rope_base)
        if cache is not None:
            k, v = cache.extend(self, k, v)
        x = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            # a token alone with a cache is the last one, which sees all
            is_causal=mask is None and (cache is None or x.shape[1] == k.shape[2]),
            enable_gqa=self.kv_heads != self.heads,
        )
        return self.out(x.transpose(1, 2).flatten(2))  # [B, T, width]


def document_mask(tokens: Tensor, end: int) -> Tensor:
    """Which tokens each token sees: itself and those before it that are of the same document.

    Args:
        tokens: int64 [B, T].
        end: the last token of each document.

    Returns:
        bool [B, 1, T, T].
    """
    ends = (tokens == end).long()
    document = ends.cumsum(1) - ends  # [B, T]: ends before each token
    return (document[:, :, None] == document[:, None, :]).tril()[:, None]


def rotate(x: Tensor, start: int, base: float) -> Tensor:
    """Turns pairs of values by angles in proportion to the position (Su et al., RoFormer, 2021).

    Args:
        x: queries or keys, [B, heads, T, D], D even; values i and i + D/2 are a pair.
        start: position of the first token.
        base: pair i turns by base**(-2i/D) a position.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    width, time = x.shape[-1], x.shape[-2]
    frequencies = base ** (-torch.arange(0, width, 2, device=x.device, dtype=dtype) / width)
    angles = (
        torch.arange(start, start + time, device=x.device, dtype=dtype)[:, None] * frequencies
    )  # [T, D/2]
    cos, sin = angles.cos(), angles.sin()
    first, second = x.to(dtype).chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


class SwiGLU(nn.Module):
    """An MLP whose hidden values are gated: down(silu(gate(x)) * up(x)) (Shazeer, GLU variants, 2020)."""

    def __init__(self, width: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention, then an MLP, each on a normalised copy that is added back."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        self.attention_norm = options.make_norm(options.width)
        self.attention = Attention(options)
        self.mlp_norm = options.make_norm(options.width)
        self.mlp = options.make_mlp()
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None, mask: Tensor | None = None) -> Tensor:
        """[B, T, width] -> [B, T, width]; the rest as of `Attention`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), cache, mask))  # [B, T, width]
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # [B, T, width]
