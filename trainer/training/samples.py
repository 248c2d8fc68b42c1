"""Outputs of a model on a few samples, for a person to look at: predictions for images, continuations of text."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.schema import Config
from trainer.data import Batch, Data
from trainer.distributed.strategies import Strategy
from trainer.errors import ConfigError
from trainer.models.base import CachingModel
from trainer.monitor import Monitors, Progress
from trainer.objectives import Objective
from trainer.training.generation import generate
from trainer.training.precision import Precision

CANDIDATES = 128
"""Images that are searched for wrong predictions."""
PROMPT = 32
"""Tokens of the evaluated text that the model continues."""


class SampleOutputs:
    """Shows predictions and samples at evaluations, always of the same images and from the same prompt.

    All ranks compute them, since a sharded model needs that; the monitors of the first one show them. Random draws
    have a generator of their own, so that training is the same as if nothing had been shown.

    Args:
        model: its outputs are shown.
        data: the first of its evaluation splits is used.
        objective: predictions are shown of classifiers of images only, texts of what predicts tokens.
        precision: of the forward passes.
        strategy: how the model is distributed.
        config: the seed, and the prompt in ``monitor.sample_prompt``.

    Raises:
        ConfigError: ``monitor.sample_prompt`` cannot be written in the data's tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        data: Data,
        objective: Objective,
        precision: Precision,
        strategy: Strategy,
        config: Config,
    ) -> None:
        self.model = model
        self.data = data
        self.predicts = data.kind == "images" and objective.logits_of == "classes"
        self.writes = data.decode is not None and objective.logits_of == "tokens"
        self.precision = precision
        self.strategy = strategy
        self.seed = config.seed
        self.split = next(iter(data.evals))
        if self.writes:
            self.prompt = self._prompt(config.monitor.sample_prompt)

    def show(self, progress: Progress, monitors: Monitors) -> None:
        """Sends the monitors what their options ask for; all ranks call it."""
        options = monitors.options
        if options.predictions and self.predicts:
            monitors.predictions(
                progress, f"{self.split}/predictions", *self.predictions(options.predictions)
            )
        if options.sample_tokens and self.writes:
            monitors.text(progress, f"{self.split}/sample", self.sample(options.sample_tokens))

    def predictions(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images [N, C, H, W], predicted and true classes [N]; N is at most ``count``, wrong predictions come first."""
        images, targets = self.candidates
        predicted = self._outputs(images).argmax(-1)
        chosen = wrong_and_right(predicted == targets, count)
        return images[chosen], predicted[chosen], targets[chosen]

    def sample(self, length: int) -> str:
        """The prompt and its continuation by the model, of ``length`` tokens, as text."""
        assert self.data.decode is not None
        generator = torch.Generator().manual_seed(self.seed % 2**63)
        with torch.compiler.set_stance("force_eager"):  # the length of the text changes with every token
            cache = self.model.new_cache() if isinstance(self.model, CachingModel) else None
            tokens = generate(self._outputs, self.prompt, length, self.data.model_defaults, generator, cache)
        return self.data.decode(tokens.cpu())

    @cached_property
    def candidates(self) -> Batch:
        """Images from all over the split, whose order may be that of the classes."""
        split = self.data.evals[self.split]
        places = torch.linspace(0, len(split) - 1, min(CANDIDATES, len(split))).round().long()
        return split.batch(places, None)

    def _outputs(self, *inputs: Any) -> Tensor:
        self.model.eval()
        with self.strategy.inference(), self.precision.autocast():
            return self.model(*inputs)

    def _prompt(self, text: str | None) -> Tensor:
        """Tokens [T] on the model's device."""
        if text and self.data.encode is not None:
            try:
                return self.data.encode(text).to(self.strategy.device)
            except ValueError as error:
                raise ConfigError(f"monitor.sample_prompt={text!r} {error}") from None
        return self.data.evals[self.split].batch(torch.arange(1), None)[0][0][:PROMPT]


def wrong_and_right(correct: Tensor, count: int) -> Tensor:
    """The indices of at most ``count`` samples: first wrong ones, half of them or more if there are too few right ones.

    Args:
        correct: whether each prediction is right, bool [N].
        count: how many to choose.
    """
    right = correct.nonzero().flatten()
    wrong = (~correct).nonzero().flatten()[: max(count // 2, count - len(right))]
    return torch.cat([wrong, right[: count - len(wrong)]])
