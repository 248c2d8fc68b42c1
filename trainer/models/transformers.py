"""Causal language models of the package transformers, by architecture, with random weights."""

from typing import Any

from torch import Tensor, nn

from trainer.errors import ConfigError, MissingExtra, nearest, one_line
from trainer.models.base import MODELS, required_from_data
from trainer.options import Count

TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
"""Numbers that a config checks against the size of its vocabulary, and that training does not need."""


class CausalLM(nn.Module):
    """Tokens [B, T] -> logits [B, T, vocab_size], by a model whose output has more to it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens, int64 [B, T] -> logits [B, T, vocab_size]."""
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits


@MODELS.register("transformers", objective="language")
def transformers(
    *,
    arch: str = "llama",
    options: dict[str, Any] | None = None,
    vocab_size: Count | None = None,
    context_length: Count | None = None,
) -> nn.Module:
    """A model from a config alone: nothing is downloaded.

    Args:
        arch: a ``model_type`` of transformers, such as llama, qwen3 or gpt2.
        options: of its config, such as ``{num_hidden_layers: 4, hidden_size: 256}``; None: none.
        vocab_size: different tokens.
        context_length: longest sequence.

    Raises:
        MissingExtra: transformers is not installed.
        ConfigError: there is no such architecture, or it does not take an option.
    """
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN
    except ImportError:
        raise MissingExtra("model=transformers", "transformers", "zoo") from None
    if arch not in KNOWN:
        hint = nearest(arch, KNOWN).partition(" (known")[0]  # there are hundreds
        raise ConfigError(f"unknown model.arch={arch}{hint} (a model_type of transformers, such as llama)")
    sizes = {
        "vocab_size": required_from_data("vocab_size", vocab_size),
        "max_position_embeddings": required_from_data("context_length", context_length),
    }
    try:
        default = AutoConfig.for_model(arch)
        unknown = next((name for name in options or {} if not hasattr(default, name)), None)
        if unknown is None:
            config = AutoConfig.for_model(arch, **{**TOKENS, **sizes, **(options or {})})
            return CausalLM(AutoModelForCausalLM.from_config(config))
    except Exception as error:  # each architecture checks its options in its own way
        raise ConfigError(
            f"model.arch={arch} of transformers cannot be built: {one_line(error)[:300]}"
        ) from error
    raise ConfigError(f"model.arch={arch} has no option {unknown}{nearest(unknown, default.to_dict())}")
