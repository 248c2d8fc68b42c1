"""Every image classifier of timm (pytorch-image-models)."""

from difflib import get_close_matches
from typing import Any

from torch import nn

from trainer.errors import ConfigError, MissingExtra
from trainer.models.base import MODELS, check_forward, height_width, one_line, required_from_data
from trainer.models.pretrained import needs_weights
from trainer.options import Count


@MODELS.register("timm")
def timm(
    *,
    arch: str = "resnet18",
    pretrained: bool = False,
    options: dict[str, Any] = {},  # noqa: B006 (an option's default; it is copied, never changed)
    num_classes: Count | None = None,
    in_channels: Count | None = None,
    image_size: Count | tuple[Count, Count] | None = None,
) -> nn.Module:
    """A model that ``timm.list_models()`` names, with or without a tag of its weights.

    timm itself fits pretrained weights to the number of channels and classes. Transformers made for one image
    size take another by ``options={img_size: ...}``.

    Raises:
        MissingExtra: timm is not installed.
        ConfigError: there is no such model, its weights cannot be had, or it does not take an option or such
            images.
    """
    try:
        import timm
    except ImportError:
        raise MissingExtra("model=timm", "timm", "zoo") from None
    if not timm.is_model(arch):
        close = get_close_matches(arch, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"unknown model.arch={arch}{hint} (timm.list_models() lists them all)")
    channels, classes = (
        required_from_data("in_channels", in_channels),
        required_from_data("num_classes", num_classes),
    )
    try:
        loads = pretrained and needs_weights()
        model = timm.create_model(arch, loads, num_classes=classes, in_chans=channels, **options)
    except Exception as error:  # from a wrong option to weights that are not there
        raise ConfigError(f"model.arch={arch} of timm cannot be built: {one_line(error)}") from error
    check_forward(model, arch, channels, height_width(image_size), classes)
    return model
