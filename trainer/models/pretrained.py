"""Weights that models start from: those of torchvision for ImageNet, and whether any are needed at all."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from trainer.errors import ConfigError, one_line

_REPLACED = ContextVar("weights are replaced", default=False)


@contextmanager
def replaced_weights() -> Iterator[None]:
    """Within it models are built whose weights a checkpoint will replace: they download none, and read no files."""
    token = _REPLACED.set(True)
    try:
        yield
    finally:
        _REPLACED.reset(token)


def needs_weights() -> bool:
    """Whether a model that is built now has to get the weights that its options ask for; see `replaced_weights`."""
    return not _REPLACED.get()


def torchvision_weights(arch: str) -> dict[str, Tensor]:
    """The state of torchvision's default weights for an architecture; a download, unless it is in torch's cache.

    Raises:
        ConfigError: it cannot be downloaded.
    """
    from torchvision import models  # slow to import, and most runs do without it

    try:
        weights: dict[str, Tensor] = models.get_model(arch, weights="DEFAULT").state_dict()
    except (OSError, RuntimeError) as error:
        url = models.get_model_weights(arch).DEFAULT.url
        raise ConfigError(
            f"the weights of {arch} cannot be downloaded ({one_line(error)}): put {url} into "
            f"TORCH_HOME/hub/checkpoints, or set model.pretrained=false"
        ) from error
    return weights


def load_by_position(own: Mapping[str, Tensor], arch: str, skipped: str) -> None:
    """Copies torchvision's weights into tensors of a model, one after the other, whatever they are called there.

    Does nothing where the model `needs_weights` not.

    Args:
        own: a part of the model's state, in the order in which torchvision's network has the same tensors.
        arch: the name of torchvision's network.
        skipped: a regular expression; tensors whose names in torchvision's state match at their beginning are left out.

    Raises:
        ConfigError: the weights cannot be had, or the model has other shapes.
    """
    if not needs_weights():
        return
    weights = torchvision_weights(arch)
    names = [name for name in weights if not re.match(skipped, name)]
    shapes = [list(weights[name].shape) for name in names]
    if shapes != (needed := [list(tensor.shape) for tensor in own.values()]):
        other = next((n for n, a, b in zip(names, shapes, needed, strict=False) if a != b), "their number")
        raise ConfigError(
            f"model.pretrained=true does not fit the other options of the model: {other} of {arch} differs"
        )
    for name, tensor in zip(names, own.values(), strict=True):
        tensor.copy_(weights[name])
