"""GPT: a decoder-only transformer, from GPT-2 to Llama by its options."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.models.base import MODELS, required_from_data
from trainer.models.decoder_block import Block, BlockOptions, KeyValueCache, document_mask
from trainer.models.pieces import Read, read_in_pieces
from trainer.options import Count, Fraction, Natural, Positive


@MODELS.register("gpt", objective="language", pieces=True)
class GPT(nn.Module):
    """Tokens [B, T] -> logits [B, T, vocab_size] of the token after each.

    12 layers of width 768 with 12 heads, a vocabulary of 50257 and 1024 positions make GPT-2 (124,439,808
    parameters).

    Args:
        layers: transformer blocks.
        width: of the residual stream, a multiple of heads.
        heads: of the queries of each attention.
        kv_heads: of its keys and values, a divisor of heads; None: as many.
        mlp_width: hidden values of each MLP; None: 4 times the width, of swiglu two thirds of that, in whole 64s.
        dropout: of embeddings and of what blocks add.
        norm: layer norms, or those that only divide by the root mean square.
        position: learned embeddings, or rotated queries and keys, which ``context_length`` does not bound.
        rope_base: of the rotation's wavelengths.
        mlp: two layers with GELU, exact or in GPT-2's approximation, or three with a gate.
        qk_norm: normalise queries and keys, head by head.
        bias: of linear layers and layer norms.
        tied: the output layer shares the token embedding's weight.
        document_end: the token that ends a document: those behind it do not attend to what is before, and learned
            positions begin anew; None: all of a sequence is one text.
        vocab_size: different tokens.
        context_length: longest sequence.

    Raises:
        ConfigError: sizes do not divide each other, ``document_end`` is not in the vocabulary, or a sequence exceeds
            ``context_length``.
    """

    def __init__(
        self,
        *,
        layers: Count = 4,
        width: Count = 128,
        heads: Count = 4,
        kv_heads: Count | None = None,
        mlp_width: Count | None = None,
        dropout: Fraction = 0.0,
        norm: Literal["layer", "rms"] = "layer",
        position: Literal["learned", "rope"] = "learned",
        rope_base: Positive = 10_000.0,
        mlp: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu",
        qk_norm: bool = False,
        bias: bool = True,
        tied: bool = True,
        document_end: Natural | None = None,
        vocab_size: Count | None = None,
        context_length: Count | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"model.width={width} must be a multiple of model.heads={heads}")
        if kv_heads is not None and heads % kv_heads:
            raise ConfigError(f"model.heads={heads} must be a multiple of model.kv_heads={kv_heads}")
        if position == "rope" and width // heads % 2:
            raise ConfigError(
                f"model.position=rope turns pairs of values, but a head of model.width={width} / "
                f"model.heads={heads} has {width // heads}: make it even"
            )
        options = BlockOptions(
            width=width,
            heads=heads,
            kv_heads=kv_heads or heads,
            mlp_width=mlp_width or default_mlp_width(width, mlp),
            dropout=dropout,
            norm=norm,
            rope=position == "rope",
            rope_base=rope_base,
            mlp=mlp,
            qk_norm=qk_norm,
            bias=bias,
        )
        vocab_size = required_from_data("vocab_size", vocab_size)
        if document_end is not None and document_end >= vocab_size:
            raise ConfigError(
                f"model.document_end={document_end} is no token of the vocabulary: less than {vocab_size}"
            )
        self.document_end = document_end
        self.context_length = required_from_data("context_length", context_length)
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(self.context_length, width) if position == "learned" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(options) for _ in range(layers))
        self.norm = options.make_norm(width)
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
            if name.endswith(("attention.out.weight", "mlp.2.weight", "mlp.down.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * len(self.blocks)))

    def new_cache(self) -> KeyValueCache:
        """An empty cache, with which the model can be given a text token by token, up to ``context_length``."""
        return KeyValueCache()

    def forward(
        self,
        tokens: Tensor,
        cache: KeyValueCache | None = None,
        *,
        pieces: int | Literal["auto"] = 1,
        read: Read | None = None,
    ) -> Tensor:
        """Tokens, int64 [B, T] -> logits [B, T, vocab_size]; T is at most ``context_length``.

        Args:
            tokens: all of them, or with a cache those that come next: any number at first, then one at a time.
            cache: of the tokens before; takes in these.
            pieces: in which the logits are made, if ``read`` is given.
            read: what is returned instead of logits, as `trainer.models.pieces.read_in_pieces` describes.
        """
        start = 0 if cache is None else cache.length
        stop = start + tokens.shape[1]
        if stop > self.context_length:
            raise ConfigError(
                f"model.context_length={self.context_length} is less than the {stop} tokens of a sequence"
            )
        mask = self._mask(tokens, cache)
        x = self.tokens(tokens)  # [B, T, width]
        if self.positions is not None:
            # [B, T]: looked up for each sample, so that hooks on the layer see one row for each sample
            if mask is None:
                positions = torch.arange(start, stop, device=tokens.device).expand(tokens.shape)
            else:  # in its document
                positions = mask.sum(-1).squeeze(1) - 1
            x = x + self.positions(positions)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, cache, mask)
        if cache is not None:
            cache.length = stop
        x = self.norm(x)
        return self.head(x) if read is None else read_in_pieces(self.head, x, pieces, read)

    def _mask(self, tokens: Tensor, cache: KeyValueCache | None) -> Tensor | None:
        """Which tokens these see, bool [B, 1, T, all], if documents are told apart."""
        if self.document_end is None:
            return None
        seen = tokens if cache is None else cache.remember(tokens)
        return document_mask(seen, self.document_end)[:, :, -tokens.shape[1] :]


def default_mlp_width(width: int, mlp: str) -> int:
    """Four times the width; of a gated MLP, which has three layers, two thirds of that, in whole 64s."""
    return -(-8 * width // 3 // 64) * 64 if mlp == "swiglu" else 4 * width
