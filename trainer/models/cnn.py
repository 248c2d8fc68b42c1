"""Small convolutional network: minutes on a laptop for Fashion-MNIST, seconds for the digits."""

from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.models.base import MODELS, height_width, required_from_data
from trainer.options import Count, Fraction


@MODELS.register("cnn")
class CNN(nn.Module):
    """A 3x3 convolution, BatchNorm and ReLU for each width, halving the image between them; mean; classifier.

    Raises:
        ConfigError: the image is too small to be halved that often.
    """

    def __init__(
        self,
        *,
        widths: tuple[Count, ...] = (16, 32, 64),
        dropout: Fraction = 0.0,
        num_classes: Count | None = None,
        in_channels: Count | None = None,
        image_size: Count | tuple[Count, Count] | None = None,
    ) -> None:
        super().__init__()
        if not widths:
            raise ConfigError("model.widths=[] is wrong: it must name at least one width")
        side, needed = min(height_width(image_size)), 2 ** (len(widths) - 1)
        if side < needed:
            raise ConfigError(
                f"model.widths={list(widths)} halves the image {len(widths) - 1} times and needs {needed} "
                f"pixels a side, but there are {side}: give fewer widths"
            )
        channels = required_from_data("in_channels", in_channels)
        stages: list[nn.Module] = []
        for i, width in enumerate(widths):
            if i > 0:
                stages.append(nn.MaxPool2d(2))
            # BatchNorm has its own shift: a bias before it would do nothing
            stages += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, required_from_data("num_classes", num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, num_classes]."""
        x = self.features(images)  # [B, C, H, W] -> [B, widths[-1], h, w]
        x = x.mean(dim=(2, 3))  # [B, widths[-1]]
        return self.head(self.dropout(x))  # [B, num_classes]
