"""Multi-head self-attention of image transformers."""

import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Self-attention whose query, key and value come from one matrix without bias.

    Args:
        width: of a token, a multiple of heads.
        heads: attentions side by side.
        dropout: probability that an attention weight is dropped in training.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., T, width] -> [..., T, width]; the bias, added to the scores, broadcasts to [..., heads, T, T]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # each [..., T, heads, D]
        q, k, v = (part.transpose(-3, -2) for part in (q, k, v))  # each [..., heads, T, D]
        dropout = self.dropout if self.training else 0.0
        bias = None if bias is None else bias.to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)  # [..., heads, T, D]
        return self.out(y.transpose(-3, -2).flatten(-2))  # [..., T, width]


def feed_forward(width: int, hidden: int) -> nn.Sequential:
    """Linear, GELU, linear: [..., width] -> [..., width]."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
