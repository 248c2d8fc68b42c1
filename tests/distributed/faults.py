"""A plugin that makes something go wrong on rank 1, as the variable FAULT says."""

import os
import signal
import time
from collections.abc import Iterator

from trainer.data import TrainLoader, eval_batches
from trainer.data.base import Batch, LoaderOptions, Split
from trainer.errors import DataError
from trainer.training import evaluation

FAULT = os.environ.get("FAULT")
AT = 5
"""The step at which it happens."""

_next_batch = TrainLoader.next_batch


def next_batch(loader: TrainLoader) -> list[Batch]:
    batches = _next_batch(loader)
    if loader.rank != 1 or loader.epoch * loader.batches_per_epoch + loader.batch < AT:
        return batches
    match FAULT:
        case "raise":
            raise RuntimeError("out of luck")
        case "leave":
            os._exit(0)
        case "hang":
            time.sleep(1000)
        case "one nan" if loader.batch > AT:
            return batches
        case "one nan" | "all nan":
            return [(inputs * float("nan"), targets) for inputs, targets in batches]
    return batches


TrainLoader.next_batch = next_batch  # type: ignore[method-assign]


def evaluated_batches(split: Split, options: LoaderOptions, rank: int, world_size: int) -> Iterator[Batch]:
    for number, batch in enumerate(eval_batches(split, options, rank, world_size)):
        if (rank, number) == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch
        if number > 2:
            raise AssertionError("the evaluation went on")


if FAULT == "signal in evaluation":
    evaluation.eval_batches = evaluated_batches  # type: ignore[assignment]

if FAULT == "mistake" and os.environ.get("RANK") == "1":
    raise DataError("this rank lacks something")
