"""Which samples make which batch on which rank: seeded, resumable anywhere, the same for any world size."""

import math
from collections.abc import Generator, Iterable, Iterator

import torch

from trainer.data.base import Batch, LazySplit, Split
from trainer.data.random import mix
from trainer.data.workers import Plan, read_ahead
from trainer.errors import ConfigError


class TrainLoader:
    """Endless training batches: each epoch is a new permutation, its last incomplete batch dropped.

    Batch b of epoch e is the same for every world size and number of micro-batches: the ranks and their
    micro-batches share it out in order. The position is two counters: resuming in mid-epoch replays nothing.

    Args:
        split: the samples.
        batch_size: samples per global batch, a multiple of world_size * micro_batches.
        seed: seeds the order and the augmentation.
        rank, world_size: which part of each global batch is ours.
        micro_batches: parts in which our part is handed out.
        num_workers: processes that read samples ahead, for splits that are read lazily.

    Raises:
        ConfigError: the batch size does not divide, or exceeds the split.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
        num_workers: int = 0,
    ) -> None:
        parts = world_size * micro_batches
        if batch_size % parts:
            near = max(batch_size // parts, 1) * parts
            raise ConfigError(
                f"data.batch_size={batch_size} does not divide into {world_size} ranks x "
                f"{micro_batches} micro-batches: take a multiple of {parts}, such as {near}"
            )
        if batch_size > len(split):
            raise ConfigError(f"data.batch_size={batch_size} exceeds the training set: at most {len(split)}")
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.micro_batches = micro_batches
        self.num_workers = num_workers
        self.batches_per_epoch = len(split) // batch_size
        self.epoch = 0
        self.batch = 0  # the next batch's number in its epoch
        self._stream: Generator[Batch, None, None] | None = None

    def next_batch(self) -> list[Batch]:
        """This rank's micro-batches of the next global batch."""
        if self._stream is None:
            self._stream = fetch(self.split, self._plans(self.epoch, self.batch), self.num_workers)
        batches = [next(self._stream) for _ in range(self.micro_batches)]
        self.batch += 1
        if self.batch == self.batches_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
        return batches

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.close()
        self.epoch, self.batch = state["epoch"], state["batch"]

    def close(self) -> None:
        """Ends the worker processes; the next batch starts new ones."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _plans(self, epoch: int, batch: int) -> Iterator[Plan]:
        """This rank's micro-batches from a position on, for ever."""
        local = self.batch_size // self.world_size
        while True:
            generator = torch.Generator().manual_seed(mix(self.seed, epoch))
            order = torch.randperm(len(self.split), generator=generator)
            for number in range(batch, self.batches_per_epoch):
                start = number * self.batch_size + self.rank * local
                key = mix(self.seed, epoch, number)
                for part in order[start : start + local].chunk(self.micro_batches):
                    yield part, key
            epoch, batch = epoch + 1, 0


def eval_batches(
    split: Split, batch_size: int, rank: int = 0, world_size: int = 1, num_workers: int = 0
) -> Generator[Batch, None, None]:
    """Every sample exactly once over all ranks, in order, without augmentation.

    All ranks get the same number of batches, since a sharded model's forward pass is a collective; the sizes
    of all batches differ by at most one.

    Args:
        batch_size: samples per step over all ranks; a rank takes at most its share, rounded up.
    """
    steps = max(1, min(math.ceil(len(split) / batch_size), len(split) // world_size))
    parts = torch.arange(len(split)).tensor_split(steps * world_size)
    return fetch(split, ((part, None) for part in parts[rank::world_size]), num_workers)


def fetch(split: Split, plans: Iterable[Plan], num_workers: int) -> Generator[Batch, None, None]:
    """Yields the planned batches on the device, in order; read ahead by worker processes where that helps."""
    if num_workers and isinstance(split, LazySplit):
        yield from read_ahead(split, plans, num_workers)
        return
    for indices, key in plans:
        yield split.batch(indices, key)
