"""From a config to the model, with what the data say of it."""

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from trainer.config.schema import Config
from trainer.data import Data
from trainer.errors import ConfigError, one_line_errors
from trainer.models import MODELS
from trainer.models.base import height_width, kind_read

FIXED = ("num_classes", "vocab_size", "in_channels", "image_size", "context_length", "document_end")
"""What the user may say too, but not otherwise than the data."""


def build_model(config: Config, data: Data) -> nn.Module:
    """The model, with the options that the user left open filled in from the data.

    Raises:
        ConfigError: the model reads something else than the data gives, has another number of classes, or cannot tell
            documents apart as the data ask for.
    """
    name = config.model["name"]
    kind = kind_read(name)
    if kind != data.kind:
        raise ConfigError(
            f"model={name} reads {kind}, but data={config.data['name']} gives {data.kind}: "
            f"choose another model or another data"
        )
    options = dict(config.model)
    for fact, value in data.model_defaults.items():
        if fact not in options:
            if fact == "document_end":
                raise ConfigError(
                    f"data.document_mask=true needs a model with the option document_end, as model=gpt has: "
                    f"model={name} has none"
                )
            continue
        if options[fact] is None:
            options[fact] = value
        elif fact in FIXED and not fits(fact, options[fact], value):
            raise ConfigError(
                f"model.{fact}={options[fact]} does not fit data={config.data['name']}, which has {value}: "
                f"leave it null"
            )
    return MODELS.build(options)


@torch.no_grad()
def initialize_lazy_layers(model: nn.Module, data: Data) -> None:
    """Runs a model with layers such as ``nn.LazyLinear`` on one sample, from which they take their shapes.

    Raises:
        BuildError: the model fails.
    """
    if any(is_lazy(parameter) for parameter in model.parameters()):
        sample = data.train.batch(torch.arange(1), None)[0].cpu()
        with one_line_errors("the model does not take a sample of the data", type(model).__module__):
            model.eval()(sample)


def fits(fact: str, option: Any, value: Any) -> bool:
    """Whether a model can have that option: more classes or tokens than the data has, all else just as it is."""
    if fact == "image_size":
        return tuple(height_width(option)) == tuple(height_width(value))
    at_least = ("num_classes", "vocab_size", "context_length")
    return bool(option >= value if fact in at_least else option == value)
