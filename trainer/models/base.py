"""The registry of models, and what a model takes from the data."""

from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from trainer.errors import ConfigError, one_line
from trainer.registry import Registry

MODELS = Registry("model", entry_points="trainer.models")
"""Models by name. The tag ``objective`` says what a model learns unless the user chooses something else:
"classification" (the default: images to logits [B, classes]), "language" (tokens [B, T] to logits [B, T, vocabulary]),
"reconstruction" (images to images), or the name of an objective. ``reads``: the kind of data that it takes, the default
of which is tokens for language, else images. ``pieces``: a language model whose forward takes ``pieces`` and ``read``,
as `trainer.models.pieces` describes."""

Fact = TypeVar("Fact")


def kind_read(model: str) -> str:
    """The kind of data that the model of that name takes, such as ``images``."""
    tags = MODELS.get(model).tags
    kind: str = tags.get("reads", "tokens" if tags.get("objective") == "language" else "images")
    return kind


class Cache(Protocol):
    """What a model keeps of the tokens that it has seen."""

    length: int
    """How many there were."""


@runtime_checkable
class CachingModel(Protocol):
    """A language model that goes on with a text without computing anew what it has seen of it.

    It is called with tokens, int64 [1, T], and a cache, and gives the logits of these tokens, of which there is one
    unless the cache was empty.
    """

    def new_cache(self) -> Any:
        """An empty `Cache`."""


def required_from_data(name: str, value: Fact | None) -> Fact:
    """The value of an option that the data set fills in where the user leaves it null.

    Raises:
        ConfigError: neither the user nor the data set says it.
    """
    if value is None:
        raise ConfigError(
            f"model.{name} is unknown: this data set does not say it, so set it or take other data"
        )
    return value


def height_width(image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of an image whose size is given as one number if it is square."""
    if isinstance(image_size, int):
        return image_size, image_size
    return required_from_data("image_size", image_size)


def reset_convolutions(model: nn.Module) -> None:
    """Gives all convolutions the random weights with which torch makes them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()


def check_forward(model: nn.Module, arch: str, channels: int, size: tuple[int, int], classes: int) -> None:
    """Runs one empty image through a classifier whose limits only its own code knows.

    Raises:
        ConfigError: it does not take images of this size, or does not give one logit a class.
    """
    image = torch.zeros(1, channels, *size)
    try:
        with torch.no_grad():
            logits = model.eval()(image)
    except Exception as error:  # each architecture fails in its own way
        raise ConfigError(f"model.arch={arch} does not take images of {size}: {one_line(error)}") from error
    model.train()
    if logits.shape != (1, classes):
        raise ConfigError(f"model.arch={arch} is no classifier: it gives {tuple(logits.shape)} for an image")
