"""GPT-1: a post-norm decoder-only transformer with learned positions (Radford et al., 2018)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trainer.errors import ConfigError, DataError, one_line
from trainer.models.attention import feed_forward
from trainer.models.base import MODELS, required_from_data
from trainer.models.pretrained import needs_weights
from trainer.options import Count

EMBEDDINGS = ("tokens_embed.weight", "positions_embed.weight")
"""The ends of their names in the file of OpenAI's weights."""


class Attention(nn.Module):
    """Causal multi-head self-attention by four linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, T, D]
            for layer in (self.query, self.key, self.value)
        )
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [B, heads, T, D]
        return self.out(x.transpose(1, 2).flatten(-2))  # [B, T, width]


class Block(nn.Module):
    """Attention, then an MLP four times as wide; each is added to its input, and the sum normalised."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.attention_norm = nn.LayerNorm(width)
        self.mlp = feed_forward(width, 4 * width)
        self.mlp_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, width]."""
        x = self.attention_norm(x + self.attention(x))
        return self.mlp_norm(x + self.mlp(x))


@MODELS.register("gpt1", objective="language")
class GPT1(nn.Module):
    """Tokens [B, T] -> logits [B, T, vocab_size] of the token after each; the output layer is the token embedding.

    With 4 layers the blocks have 28,351,488 parameters, and with frozen embeddings nothing else is learned.

    Args:
        layers: transformer blocks.
        width: of the residual stream, a multiple of heads.
        heads: of each attention.
        embeddings: file of OpenAI's weights in the form of safetensors, of the same vocabulary; null: random ones.
        freeze_embeddings: do not train the embeddings of tokens and positions.

    Raises:
        ConfigError: the width is not a multiple of the heads, random embeddings are frozen, or a sequence exceeds
            ``context_length``.
        DataError: the file of the embeddings cannot be read, or they have other shapes.
    """

    def __init__(
        self,
        *,
        layers: Count = 4,
        width: Count = 768,
        heads: Count = 12,
        embeddings: str | None = None,
        freeze_embeddings: bool = False,
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
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)  # as OpenAI's began; the blocks keep torch's default
        if embeddings is not None and needs_weights():
            self._load(embeddings)
        if freeze_embeddings and embeddings is None:
            raise ConfigError(
                "model.freeze_embeddings=true would keep random embeddings: name model.embeddings, too"
            )
        if freeze_embeddings:
            self.tokens.requires_grad_(False)
            self.positions.requires_grad_(False)

    def _load(self, path: str) -> None:
        """Loads both embeddings; of the positions, as many as there are in a sequence."""
        for end, embedding in zip(EMBEDDINGS, (self.tokens, self.positions), strict=True):
            loaded = read_tensor(Path(path), end)
            own = embedding.weight
            if embedding is self.positions:
                loaded = loaded[: len(own)]
            if loaded.shape != own.shape:
                raise DataError(
                    f"model.embeddings={path} holds {list(loaded.shape)} as {end}, the model needs {list(own.shape)}"
                )
            with torch.no_grad():
                own.copy_(loaded)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens, int64 [B, T] -> logits [B, T, vocab_size]; T is at most ``context_length``."""
        time = tokens.shape[1]
        if time > self.context_length:
            raise ConfigError(
                f"model.context_length={self.context_length} is less than the {time} tokens of a sequence"
            )
        # [B, T]: looked up for each sample, so that hooks on the layer see one row for each sample
        positions = torch.arange(time, device=tokens.device).expand(tokens.shape)
        x = self.tokens(tokens) + self.positions(positions)  # [B, T, width]
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # [B, T, vocab_size]


def read_tensor(path: Path, end: str) -> Tensor:
    """The one tensor of a safetensors file whose name ends so.

    Raises:
        DataError: the file cannot be read, or has no such tensor.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.endswith(end)]  # noqa: SIM118 (it is no mapping)
            if len(names) == 1:
                return file.get_tensor(names[0])
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"model.embeddings={path} cannot be read ({one_line(error)}): name the model.safetensors of GPT-1"
        ) from None
    raise DataError(f"model.embeddings={path} has no {end}: name the model.safetensors of GPT-1")
