"""The deep autoencoder on which second-order optimizers are compared (Hinton and Salakhutdinov, 2006)."""

from torch import Tensor, nn

from trainer.models.base import MODELS, height_width, required_from_data
from trainer.options import Count


@MODELS.register("autoencoder", objective="reconstruction")
class Autoencoder(nn.Module):
    """An MLP through a narrow code and back: 784-1000-500-250-30-250-500-1000-784 on 28x28 images.

    ReLU between the layers. The code and the output are linear: inputs are normalised, so they have no bounds
    that a squashing output could match, and the mean squared error is the loss that fits them.
    """

    def __init__(
        self,
        *,
        widths: tuple[Count, ...] = (1000, 500, 250, 30),
        in_channels: Count | None = None,
        image_size: Count | tuple[Count, Count] | None = None,
    ) -> None:
        super().__init__()
        height, width = height_width(image_size)
        sizes = [required_from_data("in_channels", in_channels) * height * width, *widths]
        self.encoder = _layers(sizes)
        self.decoder = _layers(sizes[::-1])

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> their reconstruction [B, C, H, W]."""
        code = self.encoder(images.flatten(1))  # [B, C, H, W] -> [B, C * H * W] -> [B, widths[-1]]
        return self.decoder(code).view_as(images)  # [B, C * H * W] -> [B, C, H, W]


def _layers(sizes: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between them and none after the last."""
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
