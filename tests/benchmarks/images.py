"""Images per second of data=image_folder against torchvision's ImageFolder with DataLoader, and timm's loader.

All make shuffled batches of normalised inputs from the same made-up JPEG files, in one process and thread: random
resized crop and flip. The folder, the pack and the cache are read by data=image_folder; the cache is left out where
pictures would hardly be kept in memory. They take turns; rates are of CPU time, ratios medians over rounds.

    python tests/benchmarks/images.py [--rounds 7]
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from trainer.data import DATA, LoaderOptions, TrainLoader
from trainer.data.finish import MEAN, STD
from trainer.data.pack import pack


class Case(NamedTuple):
    width: int
    height: int
    crop: int
    count: int
    batch_size: int
    batches: int
    """Of a round."""


CASES = [Case(32, 32, 32, 2000, 100, 5), Case(64, 64, 64, 2000, 100, 4), Case(500, 375, 224, 120, 20, 2)]
CACHED = 64
"""Pixels up to which the cache is measured."""


def write_pictures(root: Path, case: Case) -> None:
    """Smooth random colours, as JPEG of quality 90, in ten classes."""
    rng = np.random.default_rng(0)
    for number in range(case.count):
        path = root / "train" / f"class{number % 10}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(256, size=(case.height // 8, case.width // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((case.width, case.height), Image.Resampling.BICUBIC).save(
            path, quality=90
        )
    (root / "val").symlink_to("train")


def ours(case: Case, **options: Any) -> Iterator[Any]:
    config = {"name": "image_folder", "image_size": case.crop, "resize": case.crop, **options}
    data = DATA.build(DATA.check(config), torch.device("cpu"), 0)
    loader = TrainLoader(data.train, LoaderOptions(batch_size=case.batch_size), seed=0)
    while True:
        yield loader.next_batch()[0]


def of_torchvision(case: Case, root: Path) -> Iterator[Any]:
    change = transforms.Compose(
        [
            transforms.RandomResizedCrop(case.crop),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    loader = DataLoader(
        datasets.ImageFolder(str(root / "train"), change), case.batch_size, shuffle=True, drop_last=True
    )
    while True:
        yield from loader


def of_timm(case: Case, root: Path) -> Iterator[Any]:
    from timm.data import ImageDataset, create_loader

    loader = create_loader(
        ImageDataset(str(root / "train")),
        input_size=(3, case.crop, case.crop),
        batch_size=case.batch_size,
        is_training=True,
        use_prefetcher=False,
        color_jitter=None,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=0,
        persistent_workers=False,
    )
    while True:
        yield from loader


def rate(batches: Iterator[Any], count: int) -> float:
    start, images = time.process_time(), 0
    for _ in range(count):
        images += len(next(batches)[0])
    return images / (time.process_time() - start)


def measure(case: Case, folder: Path, rounds: int) -> Table:
    root, packed = folder / "pictures", folder / "pack"
    write_pictures(root, case)
    pack(root, packed, 512, lambda *_: None)
    makers: dict[str, Callable[[], Iterator[Any]]] = {
        "torchvision, DataLoader": lambda: of_torchvision(case, root),
        "timm's loader": lambda: of_timm(case, root),
        "folder": lambda: ours(case, root=str(root)),
        "pack": lambda: ours(case, path=str(packed)),
    }
    if case.width <= CACHED:
        makers["cache=memory"] = lambda: ours(case, path=str(packed), cache="memory")
    streams = {name: make() for name, make in makers.items()}
    for stream in streams.values():
        next(stream)
    rates: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(rounds):
        for name, stream in streams.items():
            rates[name].append(rate(stream, case.batches * (20 if name.startswith("cache") else 1)))
    table = Table(
        f"{case.width} x {case.height} to {case.crop} x {case.crop}", "images/s", "times torchvision"
    )
    base = next(iter(rates.values()))
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found, base, strict=True)]
        ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        table.add_row(name, f"{median(found):,.0f}", ratio)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for case in CASES:
        with TemporaryDirectory() as folder:
            Console().print(measure(case, Path(folder), options.rounds))


if __name__ == "__main__":
    main()
