"""Worker processes that read batches ahead: how they start, how they end, and what is said when one is killed."""

import signal
import sys
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer._private import worker_processes, worker_shutdown
from trainer.data.base import Batch, LazySplit
from trainer.errors import DataError, WorkerKilled
from trainer.signals import signals_blocked

Plan = tuple[Tensor, int | None]
"""A batch to be made: sample numbers (int64 [B]) and the augmentation key."""

START_METHOD = "fork" if sys.platform == "linux" else None
"""None: Python's own. From Python 3.14 on, and in a process from a fork server, it is a fork server for each loader:
that takes seconds, and its workers do not notice that this process is killed, since it is not their parent."""

HINTS = {
    signal.SIGKILL: "out of memory? lower data.num_workers or data.batch_size",
    signal.SIGBUS: "too little shared memory in /dev/shm? lower data.num_workers or data.batch_size",
}


def read_ahead(split: LazySplit, plans: Iterable[Plan], num_workers: int) -> Generator[Batch, None, None]:
    """Yields the planned batches on the device, in order, read by worker processes.

    The workers end when the generator is exhausted or closed, at the latest when this process ends.

    Raises:
        DataError: a sample cannot be read, or a worker was killed.
    """
    loader = DataLoader(
        _Reader(split),
        sampler=((indices.tolist(), key) for indices, key in plans),  # a tensor costs a file handle
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context=START_METHOD,
        pin_memory=split.device.type == "cuda",
        generator=torch.Generator(),  # otherwise it draws from the global one
    )
    with signals_blocked(), child_handler_kept():
        batches = iter(loader)
    # At exit multiprocessing sends workers SIGTERM, which they do not see, and waits for them. Its finalizers come
    # first, in a fork server's child too, where functions registered with atexit are not called before it waits.
    stop = Finalize(None, stop_workers, (batches,), exitpriority=1)
    try:
        while (item := next_item(batches)) is not None:
            if isinstance(item, DataError):
                raise item
            yield split.finish(*item)
    finally:
        stop()


def next_item(batches: Any) -> Batch | DataError | None:
    """Returns what the workers send next; None at the end.

    Raises:
        DataError: a worker was killed.
        Exception: one that a worker's dataset raised.
    """
    try:
        return next(batches, None)
    except (RuntimeError, OSError, EOFError) as error:  # how a connection to a dead worker fails, too
        death = death_of(worker_processes(batches))
        if death is None:
            raise
        raise death from error


def death_of(workers: list[Any]) -> DataError | None:
    """Returns an error that says how the first worker that did not end by itself died; None if none did."""
    ended = wait([worker.sentinel for worker in workers], timeout=1.0)
    for worker in workers:
        if worker.sentinel in ended:
            worker.join()  # its connections close a moment before it counts as dead
    codes = [worker.exitcode for worker in workers if worker.exitcode]
    if not codes:
        return None
    if codes[0] > 0:
        return DataError(
            f"a data worker ended with exit code {codes[0]}: try data.num_workers=0, which shows why"
        )
    killer = signal.Signals(-codes[0])
    hint = HINTS.get(killer, "try data.num_workers=0")
    return WorkerKilled(f"a data worker was ended by {killer.name}: {hint}")


def stop_workers(batches: Any) -> None:
    """Ends the workers of torch's iterator; those that do not end when they are asked are killed."""
    worker_shutdown(batches)()  # does nothing once Python is shutting down
    for worker in worker_processes(batches):
        if worker.is_alive():
            worker.kill()
            worker.join()


@contextmanager
def child_handler_kept() -> Iterator[None]:
    """Undoes that torch handles SIGCHLD, once it has started workers.

    Its handler raises wherever training is when a worker dies, even in the middle of a step. Without it the next
    batch does, between two steps, and the run can be saved.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


class _Reader(Dataset[Any]):
    """What worker processes run. A user's error comes back as a value, which keeps its message one line."""

    def __init__(self, split: LazySplit) -> None:
        self.split = split

    def __getitem__(self, plan: tuple[list[int], int | None]) -> Batch | DataError:
        indices, key = plan
        try:
            return self.split.read(torch.tensor(indices), key)
        except DataError as error:
            return error
