"""CIFAR-10 and CIFAR-100 as torchvision stores them: 50,000 training and 10,000 test images of 32 x 32."""

from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from trainer.data.base import DATA, Data
from trainer.data.download import download
from trainer.data.images import Augmentation, memory_images
from trainer.errors import DataError
from trainer.options import MAY_DIFFER, Natural, Positive


@DATA.register("cifar10")
def cifar10(
    device: torch.device,
    seed: int,
    *,
    root: Annotated[str, MAY_DIFFER] = "data",
    download: Annotated[bool, MAY_DIFFER] = False,
    normalize: bool = True,
    mean: tuple[float, float, float] | None = None,
    std: tuple[Positive, Positive, Positive] | None = None,
    crop_padding: Natural = 4,
    flip: bool = True,
    cutout: Natural = 0,
) -> Data:
    """Images [3, 32, 32] in 10 classes.

    Args:
        mean, std: what normalisation takes off and divides by, per channel; None: those of the training set.
    """
    sets, classes = _load("CIFAR10", Path(root), download)
    return memory_images(
        *sets,
        classes=classes,
        num_classes=10,
        mean=list(mean or [0.4914, 0.4822, 0.4465]),
        std=list(std or [0.2470, 0.2435, 0.2616]),
        normalize=normalize,
        augmentation=Augmentation(crop_padding, flip, cutout),
        device=device,
    )


@DATA.register("cifar100")
def cifar100(
    device: torch.device,
    seed: int,
    *,
    root: Annotated[str, MAY_DIFFER] = "data",
    download: Annotated[bool, MAY_DIFFER] = False,
    normalize: bool = True,
    mean: tuple[float, float, float] | None = None,
    std: tuple[Positive, Positive, Positive] | None = None,
    crop_padding: Natural = 4,
    flip: bool = True,
    cutout: Natural = 0,
) -> Data:
    """Images [3, 32, 32] in 100 classes; the options are those of CIFAR-10."""
    sets, classes = _load("CIFAR100", Path(root), download)
    return memory_images(
        *sets,
        classes=classes,
        num_classes=100,
        mean=list(mean or [0.5071, 0.4865, 0.4409]),
        std=list(std or [0.2673, 0.2564, 0.2762]),
        normalize=normalize,
        augmentation=Augmentation(crop_padding, flip, cutout),
        device=device,
    )


def _load(name: str, root: Path, fetch: bool) -> tuple[list[tuple[Tensor, Tensor]], list[str]]:
    """The training and the test set, images uint8 [N, 3, 32, 32] and labels int64 [N] each, and the classes' names."""
    from torchvision import datasets  # slow to import, and most runs do without it

    dataset = getattr(datasets, name)
    folder = dataset.base_folder
    if fetch and not (root / folder).is_dir():
        download(dataset, root, folder)
    try:
        parts = [dataset(root, train=train) for train in (True, False)]
    except RuntimeError:  # torchvision checks the files' MD5 sums
        raise DataError(
            f"no complete {name} in {root / folder}: remove it if it is there, and fetch it with "
            f"data.download=true, or unpack {dataset.url} in data.root={root}"
        ) from None
    sets = [(torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)) for part in parts]
    return sets, parts[0].classes
