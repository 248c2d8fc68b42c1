"""Writing the checkpoints of a run: at once, or in the background while training goes on."""

import threading
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map

from trainer.checkpoint import storage
from trainer.checkpoint.state import TrainState
from trainer.distributed.ranks import Ranks


class CheckpointManager:
    """Writes the checkpoints of a run, keeps the newest and the best, removes the others.

    Args:
        folder: the run's ``checkpoints`` directory.
        keep_last: how many to keep, at least 1, besides the best.
        background: copy what is saved, and write it while training goes on; one at a time.
    """

    def __init__(self, folder: Path, ranks: Ranks, *, keep_last: int, background: bool) -> None:
        self.folder = folder
        self.ranks = ranks
        self.keep_last = keep_last
        self.background = background
        # of its own, since its messages pass between those of the training steps
        self.group: Any = dist.new_group(backend="gloo") if ranks.world_size > 1 else None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        if ranks.is_rank0:
            storage.remove_partial(folder)

    def save(self, state: TrainState, *, best: bool) -> None:
        """Saves the present step.

        Raises:
            Exception: it, or the last one in the background, could not be written.
        """
        self.wait()
        content = storage.content_of(state, self.ranks)
        if not self.background:
            self._write(state.counters.step, content, best)
            return
        arguments = (state.counters.step, tree_map(copied, content), best)
        self._thread = threading.Thread(target=self._try_to_write, args=arguments, daemon=True)
        self._thread.start()

    def mark_best(self, step: int) -> None:
        """Makes the checkpoint of a step, which was saved before, the best."""
        self.wait()
        if self.ranks.is_rank0:
            storage.mark_best(storage.path_of(self.folder, step))

    def wait(self) -> None:
        """Waits until what is being saved is written.

        Raises:
            Exception: it could not be.
        """
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error:
            raise self._error

    def _try_to_write(self, step: int, content: dict[str, Any], best: bool) -> None:
        try:
            self._write(step, content, best)
        except Exception as error:  # the training thread raises it
            self._error = error

    def _write(self, step: int, content: dict[str, Any], best: bool) -> None:
        written = storage.write(self.folder, step, content, self.ranks, self.group)
        if self.ranks.is_rank0:
            if best:
                storage.mark_best(written)
            storage.remove_old(self.folder, self.keep_last)


def copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
