"""The batches of training and evaluation: seeded, resumable anywhere, the same for any world size."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator

import torch
from torch import Tensor

from trainer.data.base import Batch, LazySplit, LoaderOptions, OrderedSplit, Split
from trainer.data.machine import auto_workers
from trainer.data.random import mix
from trainer.data.workers import Plan, read_ahead
from trainer.errors import ConfigError

DRAWN_AHEAD = 4096
"""Places of an order of a split's own that are computed at a time, which costs little more than a batch of them."""


class TrainLoader:
    """Endless training batches: each epoch is a new permutation, its last incomplete batch dropped or kept.

    A split with an order of its own goes on in it: what does not fill an epoch's last batch begins the next epoch.

    Batch b of epoch e is the same for every world size and number of micro-batches: the ranks and their
    micro-batches share it out in order. The position is two counters: resuming in mid-epoch replays nothing.

    Args:
        split: the samples.
        options: its ``batch_size`` is a multiple of world_size * micro_batches * split.group.
        seed: seeds the order and the augmentation.
        rank, world_size: which part of each global batch is ours.
        micro_batches: parts in which our part is handed out.

    Raises:
        ConfigError: the batch size does not divide, or exceeds the split.
    """

    def __init__(
        self,
        split: Split,
        options: LoaderOptions,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
    ) -> None:
        batch_size = options.batch_size
        parts = world_size * micro_batches * split.group
        if batch_size % parts:
            near = max(batch_size // parts, 1) * parts
            groups = f" x samples in groups of {split.group}" if split.group > 1 else ""
            way = f"take a multiple of {parts}, such as {near}"
            local, rest = divmod(batch_size, world_size * split.group)
            if not rest:
                way += f", or loop.accumulate={math.gcd(local, micro_batches)}"
            raise ConfigError(
                f"data.batch_size={batch_size} does not divide into {world_size} ranks x "
                f"{micro_batches} micro-batches{groups}: {way}"
            )
        if batch_size > len(split):
            raise ConfigError(f"data.batch_size={batch_size} exceeds the training set: at most {len(split)}")
        self.split = split
        self.options = options
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.micro_batches = micro_batches
        whole = batch_size if options.drop_last or isinstance(split, OrderedSplit) else parts
        self.samples_per_epoch = len(split) // whole * whole
        self.batches_per_epoch = math.ceil(self.samples_per_epoch / batch_size)
        self.epoch = 0
        self.batch = 0  # the next batch's number in its epoch
        self._drawn = (0, torch.empty(0, dtype=torch.int64))  # the first place, and the numbers from there on
        self._stream: Generator[Batch, None, None] | None = None

    def next_batch(self) -> list[Batch]:
        """Returns this rank's micro-batches of the next global batch."""
        if self._stream is None:
            self._stream = fetch(self.split, self._plans(self.epoch, self.batch), self.options)
        batches = [next(self._stream) for _ in range(self.micro_batches)]
        self.batch += 1
        if self.batch == self.batches_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
        return batches

    def state_dict(self) -> dict[str, int]:
        """Returns the position of the next batch: ``epoch`` and ``batch``."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Moves to a position, which in a smaller set than before may be the next epoch; drops what was read ahead."""
        self.close()
        self.epoch, self.batch = state["epoch"], state["batch"]
        if self.batch >= self.batches_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0

    def close(self) -> None:
        """Ends the worker processes; the next batch starts new ones."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _plans(self, epoch: int, batch: int) -> Iterator[Plan]:
        """This rank's micro-batches from a position on, for ever."""
        while True:
            order = self._order(epoch)
            for number in range(batch, self.batches_per_epoch):
                start = number * self.batch_size
                local = min(self.batch_size, self.samples_per_epoch - start) // self.world_size
                start += self.rank * local
                key = mix(self.seed, epoch, number)
                for part in order(start, start + local).chunk(self.micro_batches):
                    yield part, key
            epoch, batch = epoch + 1, 0

    def _order(self, epoch: int) -> Callable[[int, int], Tensor]:
        """Sample numbers of an epoch from one place in it to another."""
        split, first = self.split, epoch * self.samples_per_epoch
        if isinstance(split, OrderedSplit):
            return lambda start, stop: self._draw(split, first + start, first + stop)
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        table = torch.randperm(len(split), generator=generator)
        return lambda start, stop: table[start:stop]

    def _draw(self, split: OrderedSplit, start: int, stop: int) -> Tensor:
        """The numbers at these places of the split's order, which is computed some batches ahead."""
        if not (self._drawn[0] <= start and stop <= self._drawn[0] + len(self._drawn[1])):
            ahead = torch.arange(start, max(stop, start + DRAWN_AHEAD))
            self._drawn = (start, split.draw(self.seed, ahead))
        first, numbers = self._drawn
        return numbers[start - first : stop - first]


def eval_batches(
    split: Split, options: LoaderOptions, rank: int = 0, world_size: int = 1
) -> Generator[Batch, None, None]:
    """Yields every sample exactly once over all ranks, in order, without augmentation.

    All ranks get the same number of batches, since a sharded model's forward pass is a collective; the sizes
    of all batches differ by at most one.
    """
    steps = max(1, min(math.ceil(len(split) / options.eval_batch_size), len(split) // world_size))
    parts = torch.arange(len(split)).tensor_split(steps * world_size)
    return fetch(split, ((part, None) for part in parts[rank::world_size]), options)


def fetch(split: Split, plans: Iterable[Plan], options: LoaderOptions) -> Generator[Batch, None, None]:
    """Yields the planned batches on the device, in order; worker processes read ahead where that helps."""
    workers = auto_workers() if options.num_workers == "auto" else options.num_workers
    if workers and isinstance(split, LazySplit):
        yield from read_ahead(split, plans, workers)
        return
    for indices, key in plans:
        yield split.batch(indices, key)
