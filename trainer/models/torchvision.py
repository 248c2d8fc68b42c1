"""Every classification model of torchvision."""

from typing import Any

from torch import nn

from trainer.errors import ConfigError, nearest
from trainer.models.base import MODELS, check_forward, height_width, one_line, required_from_data
from trainer.models.pretrained import needs_weights, torchvision_weights
from trainer.options import Count


@MODELS.register("torchvision")
def torchvision(
    *,
    arch: str = "resnet18",
    pretrained: bool = False,
    num_classes: Count | None = None,
    in_channels: Count | None = None,
    image_size: Count | tuple[Count, Count] | None = None,
) -> nn.Module:
    """A model that ``torchvision.models.list_models(module=torchvision.models)`` names.

    With ``pretrained`` it has torchvision's default weights, but for the classifier where the number of
    classes differs. Untrained models take any number of channels by a new first convolution. GoogLeNet and
    Inception come without their auxiliary classifiers.

    Raises:
        ConfigError: there is no such model, it does not take such images, or its weights cannot be had.
    """
    from torchvision import models  # slow to import, and most runs do without it

    if arch not in (known := models.list_models(module=models)):
        raise ConfigError(f"unknown model.arch={arch}{nearest(arch, known)}")
    channels, classes = (
        required_from_data("in_channels", in_channels),
        required_from_data("num_classes", num_classes),
    )
    size = height_width(image_size)
    if pretrained and channels != 3:
        raise ConfigError(f"model.pretrained=true needs images of 3 channels, not {channels}")
    try:
        model = models.get_model(arch, num_classes=classes, **_options(arch, size, pretrained))
    except (AssertionError, ValueError) as error:
        raise ConfigError(f"model.arch={arch} does not take images of {size}: {one_line(error)}") from error
    if pretrained and needs_weights():
        _load_weights(model, arch, classes)
    if channels != 3:
        _replace_stem(model, channels)
    check_forward(model, arch, channels, size, classes)
    return model


def _options(arch: str, size: tuple[int, int], pretrained: bool) -> dict[str, Any]:
    """Returns the arguments that an architecture needs in addition to the number of classes."""
    if arch in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": not pretrained, "transform_input": pretrained}
    if arch.startswith("vit_"):
        return {"image_size": size[0]}
    if arch.startswith("maxvit"):
        return {"input_size": size}
    return {}


def _load_weights(model: nn.Module, arch: str, classes: int) -> None:
    """Loads torchvision's default weights; a classifier for other classes keeps its own."""
    own = model.state_dict()
    weights = {  # without auxiliary classifiers
        name: value for name, value in torchvision_weights(arch).items() if name in own
    }
    other = [name for name, value in weights.items() if value.shape != own[name].shape]
    if misfits := [name for name in other if own[name].shape[0] != classes]:
        raise ConfigError(f"the weights of {arch} do not fit images of this size: {misfits[0]} differs")
    model.load_state_dict({name: weights[name] for name in weights if name not in other}, strict=False)


def _replace_stem(model: nn.Module, channels: int) -> None:
    """Gives the first convolution another number of input channels."""
    name, old = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)
