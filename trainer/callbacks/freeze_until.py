"""Keeps a part of a model as it is at first, as the body of a pretrained network while its new head is trained."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from trainer.callbacks.base import CALLBACKS, Callback, Setup, Training
from trainer.data import Batch
from trainer.errors import ConfigError, nearest
from trainer.options import Positive


@CALLBACKS.register("freeze_until")
class FreezeUntil(Callback):
    """Drops the gradients of some parameters until a moment, so that the optimizer leaves them alone: decay, too.

    Their gradients count for neither the gradient's norm nor clipping; callbacks that are chosen before this one still
    see them. Running statistics, as of batch norms, are no parameters and go on. What has been trained is not frozen
    again when the budget of a run is extended.

    Args:
        parameters: patterns of names, such as ``features.*``.
        until: a fraction of the budget if below 1, else a number of steps.
    """

    def __init__(self, *, parameters: list[str], until: Positive) -> None:
        self.patterns, self.until = parameters, until
        self.thawed = False

    def check(self, setup: Setup) -> None:
        """Refuses patterns that match nothing, or all that is trained."""
        trained = [name for name, p in setup.model.named_parameters() if p.requires_grad]
        for pattern in self.patterns:
            if not any(fnmatchcase(name, pattern) for name in trained):
                raise ConfigError(
                    f"callbacks.freeze_until.parameters: {pattern} matches no parameter{nearest(pattern, trained)}"
                )
        if all(self._matches(name) for name in trained):
            raise ConfigError(
                "callbacks.freeze_until.parameters matches all parameters: leave some to be trained"
            )

    def after_backward(self, training: Training, batch: Batch, last: bool) -> None:
        """Drops the gradients of a micro-batch, so that those of the others are not added to them."""
        progress = training.progress()
        self.thawed = self.thawed or (progress.fraction if self.until < 1 else progress.step) >= self.until
        if self.thawed:
            return
        for name, parameter in training.model.named_parameters():
            if self._matches(name):
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Whether the moment has come."""
        return {"thawed": self.thawed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes it over."""
        self.thawed = state.get("thawed", False)  # which an older checkpoint lacks

    def _matches(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)
