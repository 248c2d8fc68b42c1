"""The interface of data sets: splits, whose batches are functions of sample numbers and a key."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from trainer.options import MAY_DIFFER, Count, Fraction, Natural
from trainer.registry import Registry

Batch = tuple[Tensor, Tensor]
"""Inputs and targets. Images: float32 [B, C, H, W], and labels int64 [B], or shares of K classes float32 [B, K].
Tokens: int64 [B, T], the next ones [B, T]. Of another kind: [B, ...], [B, ...]."""


class Split(ABC):
    """Numbered samples that live on the device, or are brought there batch by batch."""

    group: int = 1
    """Training batches are asked for in parts of a multiple of so many samples, which are mixed with each other."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def batch(self, indices: Tensor, key: int | None) -> Batch:
        """Returns the samples of these numbers as inputs and targets on the device.

        A batch may be asked for in parts, by several ranks: how a sample is augmented may depend only on the
        key and the sample's number (see :func:`trainer.data.random.uniform`), not on the global RNG.

        Args:
            indices: int64 [B], each in [0, len(self)).
            key: the augmentation seed of the batch, in [0, 2**64); None: no augmentation.
        """


class LazySplit(Split):
    """Samples that are read from disk when they are asked for, by worker processes if there are any."""

    device: torch.device

    @abstractmethod
    def read(self, indices: Tensor, key: int | None) -> Batch:
        """Reads what :meth:`batch` needs, in a worker process: tensors on the CPU, as small as they can be sent."""

    @abstractmethod
    def finish(self, inputs: Tensor, targets: Tensor) -> Batch:
        """Makes of what :meth:`read` returned a batch on the device."""

    def batch(self, indices: Tensor, key: int | None) -> Batch:
        """Reads and finishes the samples in this process."""
        return self.finish(*self.read(indices, key))


class OrderedSplit(Split):
    """Samples that come in an order of their own, without a table of them all: sets too large for one, mixtures."""

    @abstractmethod
    def draw(self, seed: int, places: Tensor) -> Tensor:
        """Returns the numbers of the samples at these places of an endless sequence of training samples.

        Args:
            seed: the run's, on which alone the order depends.
            places: int64 [B].

        Returns:
            int64 [B].
        """

    @abstractmethod
    def hold_out(self, share: float) -> tuple[Split, Split]:
        """Returns the split without a share of its samples, and these, of which the others touch nothing."""


@dataclass(frozen=True)
class Data:
    """A data set, split.

    Args:
        train: what is trained on.
        evals: what is evaluated on, by name; the first one picks the best checkpoint.
        model_defaults: values of model options that the user leaves null. Images: num_classes, in_channels,
            image_size (an int, or height and width). Tokens: vocab_size, context_length, and if the documents of a
            sample are to be told apart document_end.
        kind: what a sample is: ``images``, ``tokens``, or any other word, which a model of such data is registered with
            as ``reads``.
        encode, decode: text to tokens (int64 [T]) and back, where tokens stand for text; encode raises ValueError
            for what the vocabulary lacks.
        classes: their names, in the order of their numbers; empty where they have none.
        read_images: image files to inputs [B, C, H, W] on the device, as they are in evaluation; None where the samples
            are no pictures.
        fingerprint: of what is trained and evaluated on, by what it describes, such as ``training files``: a run goes
            on only if it is the same. Options that say where the data are need none of their own: `MAY_DIFFER` or
            `KEYS_MAY_DIFFER`.
    """

    train: Split
    evals: dict[str, Split]
    model_defaults: dict[str, Any]
    kind: str
    encode: Callable[[str], Tensor] | None = None
    decode: Callable[[Tensor], str] | None = None
    classes: Sequence[str] = ()
    read_images: Callable[[Sequence[Path]], Tensor] | None = None
    fingerprint: Mapping[str, str] = field(default_factory=dict)


def digest(content: bytes) -> str:
    """Eight digits that change with the content."""
    return f"{zlib.crc32(content):08x}"


@dataclass(frozen=True)
class LoaderOptions:
    """Options of every data set, with the defaults of conf/_loader.yaml."""

    batch_size: Count = 128
    """Samples per optimizer step, over all ranks and micro-batches."""
    eval_batch_size: Annotated[Count, MAY_DIFFER] = 512
    """Samples per evaluation step, over all ranks; a rank takes at most its share, rounded up."""
    num_workers: Annotated[Literal["auto"] | Natural, MAY_DIFFER] = 0
    """Processes that read samples ahead, for splits that are read lazily; ``auto``: one a core that the rank has, at
    most 8."""
    drop_last: bool = True
    """Leave out the last samples of an epoch that are too few for a batch, instead of a smaller one; of that, what does
    not divide into ranks and micro-batches is left out still. Of token shards, these begin the next epoch."""
    holdout: Fraction = 0.0
    """Share of the training set that becomes the split "val", which then picks the best checkpoint."""


DATA = Registry("data", common=LoaderOptions, entry_points="trainer.data")
"""Data sets by name: ``make(device, seed, *, options...) -> Data``."""
