"""Images per second of the in-memory CIFAR-10 against torchvision's data set, PIL transforms and DataLoader.

Both read the same files and do the same in one process: random crop with padding 4, flip, normalisation and,
if asked for, cutout. The files are made up, in CIFAR-10's format.

    python tests/benchmarks/data.py [--threads 1] [--batch-size 128] [--cutout 16]
"""

import argparse
import pickle
import time
from itertools import repeat
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.transforms import functional as F

from trainer.data import DATA, LoaderOptions, TrainLoader

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class FakeCIFAR10(datasets.CIFAR10):
    """The format without the published files' MD5 sums."""

    train_list = [[name, None] for name, _ in datasets.CIFAR10.train_list]  # noqa: RUF012
    test_list = [[name, None] for name, _ in datasets.CIFAR10.test_list]  # noqa: RUF012
    meta = datasets.CIFAR10.meta | {"md5": None}


class Cutout:
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        y, x = torch.randint(height, ()).item(), torch.randint(width, ()).item()
        top, left = max(y - self.length // 2, 0), max(x - self.length // 2, 0)
        bottom, right = y - self.length // 2 + self.length, x - self.length // 2 + self.length
        return F.erase(image, top, left, bottom - top, right - left, torch.tensor(0.0), inplace=True)


def write_cifar10(root: Path) -> None:
    folder = root / datasets.CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, _ in datasets.CIFAR10.train_list + datasets.CIFAR10.test_list:
        data = rng.integers(0, 256, (10_000, 3072), dtype=np.uint8)
        batch = {"data": data, "labels": rng.integers(0, 10, 10_000).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}))


def torchvision_batches(root: Path, batch_size: int, cutout: int) -> DataLoader[Any]:
    steps = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    dataset = FakeCIFAR10(root, transform=transforms.Compose(steps + [Cutout(cutout)] * bool(cutout)))
    return DataLoader(dataset, batch_size, shuffle=True, drop_last=True, num_workers=0)


def our_batches(root: Path, batch_size: int, cutout: int) -> TrainLoader:
    config = DATA.check({"name": "cifar10", "root": str(root), "cutout": cutout})
    data = DATA.build(config, torch.device("cpu"), 0)
    return TrainLoader(data.train, LoaderOptions(batch_size=batch_size), seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--cutout", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, default=10, help="of torchvision's, in a round")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    datasets.CIFAR10 = FakeCIFAR10

    with TemporaryDirectory() as folder:
        write_cifar10(Path(folder))
        ours = our_batches(Path(folder), args.batch_size, args.cutout)
        theirs = torchvision_batches(Path(folder), args.batch_size, args.cutout)
        stream = (batch for epoch in repeat(theirs) for batch in epoch)
        rates: dict[str, list[float]] = {"torchvision + DataLoader": [], "trainer.data": []}
        ours.next_batch()
        for _ in range(args.rounds):
            start = time.perf_counter()
            for _ in range(args.batches):
                next(stream)
            middle = time.perf_counter()
            for _ in range(10 * args.batches):
                ours.next_batch()
            end = time.perf_counter()
            images = args.batches * args.batch_size
            rates["torchvision + DataLoader"].append(images / (middle - start))
            rates["trainer.data"].append(10 * images / (end - middle))

    table = Table(title=f"batch size {args.batch_size}, {args.threads} thread(s), cutout {args.cutout}")
    for column in ("", "images/s", "min", "max", "s per epoch of 50,000", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    base = median(rates["torchvision + DataLoader"])
    for name, values in rates.items():
        rate = median(values)
        limits = f"{min(values):,.0f}", f"{max(values):,.0f}"
        table.add_row(name, f"{rate:,.0f}", *limits, f"{50_000 / rate:.2f}", f"{rate / base:.1f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
