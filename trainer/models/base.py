"""The registry of models, and what a model takes from the data."""

from typing import TypeVar

from trainer.errors import ConfigError
from trainer.registry import Registry

MODELS = Registry("model", entry_points="trainer.models")
"""Models by name. The tag ``objective`` says what a model learns: "classification" (the default: images to
logits [B, classes]), "language" (tokens [B, T] to logits [B, T, vocabulary]) or "reconstruction" (images to
images)."""

Fact = TypeVar("Fact")


def fact(name: str, value: Fact | None) -> Fact:
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
    return fact("image_size", image_size)
