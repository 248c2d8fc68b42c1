"""Holds a share of the training set out as the split "val": for tuning, so that "test" stays unseen."""

from dataclasses import replace

import torch
from torch import Tensor

from trainer.data.base import Batch, Data, LazySplit, OrderedSplit, Split
from trainer.errors import ConfigError

HOLDOUT_SEED = 0  # not the run's: runs of different seeds must share their validation set


class Subset(Split):
    """Some samples of a split, under new numbers.

    Args:
        split: the split that they are a part of.
        numbers: int64 [N], their numbers in it.
    """

    def __init__(self, split: Split, numbers: Tensor) -> None:
        self.split = split
        self.numbers = numbers
        self.group = split.group

    def __len__(self) -> int:
        return len(self.numbers)

    def batch(self, indices: Tensor, key: int | None) -> Batch:
        """Returns samples by their new numbers; augmentation depends on the old ones."""
        return self.split.batch(self.numbers[indices], key)


class LazySubset(Subset, LazySplit):
    """A `Subset` of samples that are read lazily."""

    split: LazySplit

    def __init__(self, split: LazySplit, numbers: Tensor) -> None:
        super().__init__(split, numbers)
        self.device = split.device

    def read(self, indices: Tensor, key: int | None) -> Batch:
        """Reads samples by their new numbers, in a worker process."""
        return self.split.read(self.numbers[indices], key)

    def finish(self, inputs: Tensor, targets: Tensor) -> Batch:
        """Finishes a batch as the split does that the samples are a part of."""
        return self.split.finish(inputs, targets)


def hold_out(data: Data, share: float) -> Data:
    """Returns the data with a share of its training set as the first evaluation split, "val".

    Images are held out at random; of tokens, whose neighbours are similar, the last ones. A split that was called
    "val" before is then "test".

    Args:
        share: 0 <= share < 1; 0 leaves the data as it is.

    Raises:
        ConfigError: one of the two parts would be empty.
    """
    if not share:
        return data
    samples = len(data.train)
    held = round(samples * share)
    if not 0 < held < samples:
        raise ConfigError(f"data.holdout={share} leaves one part of the {samples} training samples empty")
    train: Split
    val: Split
    if isinstance(data.train, OrderedSplit):
        train, val = data.train.hold_out(share)
    else:
        if data.kind == "tokens":
            order = torch.arange(samples)
        else:
            order = torch.randperm(samples, generator=torch.Generator().manual_seed(HOLDOUT_SEED))
        train, val = (subset(data.train, part.sort().values) for part in order.split([samples - held, held]))
    others = {"test" if name == "val" else name: split for name, split in data.evals.items()}
    return replace(data, train=train, evals={"val": val, **others})


def subset(split: Split, numbers: Tensor) -> Subset:
    """Returns the samples of these numbers (int64 [N]) as a split, lazy if the split is."""
    return LazySubset(split, numbers) if isinstance(split, LazySplit) else Subset(split, numbers)
