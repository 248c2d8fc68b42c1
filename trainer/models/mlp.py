"""Multi-layer perceptron on flattened images."""

from torch import nn

from trainer.models.base import MODELS, height_width, required_from_data
from trainer.options import Count, Fraction


@MODELS.register("mlp")
def mlp(
    *,
    widths: tuple[Count, ...] = (256, 128),
    dropout: Fraction = 0.0,
    num_classes: Count | None = None,
    in_channels: Count | None = None,
    image_size: Count | tuple[Count, Count] | None = None,
) -> nn.Module:
    """Linear, ReLU and dropout for each width, then a linear classifier: [B, C, H, W] -> [B, num_classes]."""
    height, width = height_width(image_size)
    features = required_from_data("in_channels", in_channels) * height * width
    layers: list[nn.Module] = [nn.Flatten()]  # [B, C, H, W] -> [B, C * H * W]
    for hidden in widths:
        layers += [nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(dropout)]
        features = hidden
    return nn.Sequential(*layers, nn.Linear(features, required_from_data("num_classes", num_classes)))
