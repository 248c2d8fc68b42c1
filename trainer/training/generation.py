"""Text by a language model: one token after the other, drawn from its distribution."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.models.base import Cache


def generate(
    outputs: Callable[..., Tensor],
    prompt: Tensor,
    length: int,
    facts: Mapping[str, Any],
    generator: torch.Generator,
    cache: Cache | None = None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Tensor:
    """Draws tokens one after the other from the model's distribution: [T] -> [T + length].

    Args:
        outputs: tokens [1, T] to logits [1, T, vocabulary], T at most ``context_length``; given a cache too, of the
            tokens that are not in it yet.
        prompt: tokens [T] to continue.
        length: tokens to draw.
        facts: of the data: ``context_length``, the most tokens that ``outputs`` takes, and ``vocab_size``, beyond
            which a model may have outputs that stand for nothing.
        generator: on the CPU.
        cache: empty; used until the text is longer than the context, whose beginning moves then.
        temperature: as of `draw`.
        top_k: as of `draw`.
    """
    tokens, context, vocab_size = prompt, facts["context_length"], facts["vocab_size"]
    for _ in range(length):
        if cache is not None and len(tokens) <= context:
            logits = outputs(tokens[None, cache.length :], cache)[0, -1]
        else:
            logits = outputs(tokens[None, -context:])[0, -1]
        drawn = draw(logits[:vocab_size].float().cpu(), generator, temperature, top_k)
        tokens = torch.cat([tokens, drawn.to(tokens)])
    return tokens


def draw(logits: Tensor, generator: torch.Generator, temperature: float, top_k: int | None) -> Tensor:
    """Draws a token from softmax(logits / temperature): [vocabulary] -> int64 [1].

    Args:
        logits: on the CPU.
        generator: on the CPU.
        temperature: 0 takes the likeliest token.
        top_k: only that many of the likeliest tokens, which are at least one, can be drawn; None: all.
    """
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if top_k is None:
        return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
    likeliest = logits.topk(min(top_k, len(logits)))
    place = torch.multinomial((likeliest.values / temperature).softmax(-1), 1, generator=generator)
    return likeliest.indices[place]
