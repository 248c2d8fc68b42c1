"""When a run is saved, how many checkpoints it keeps, and writing them in the background."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainer.checkpoint import storage, writing
from trainer.checkpoint.state import TrainState
from trainer.config.schema import CheckpointOptions
from trainer.distributed.ranks import Ranks


class CheckpointManager:
    """Writes the checkpoints of a run, keeps the newest and the best, removes the others. Every rank has one.

    Args:
        folder: the run's ``checkpoints`` directory.
        ranks: the processes that train together.
        options: how often to save, how many to keep, and whether to write while training goes on.
        saved_step: the step that is in the folder already, since the run resumes from it; None for any other run.
        on_saved: called with each step that is saved, in the thread that saved it.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        options: CheckpointOptions,
        *,
        saved_step: int | None = None,
        on_saved: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.folder = folder
        self.ranks = ranks
        self.options = options
        self.on_saved = on_saved
        self.saved_step = saved_step
        """The newest step that is saved, or is being saved; None before the first."""
        self._saved_at = time.monotonic()
        # of its own, since its messages pass between those of the training steps
        self._group: Any = dist.new_group(backend="gloo") if ranks.world_size > 1 else None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        if ranks.is_rank0:
            storage.remove_partial(folder)

    def is_due(self, step: int) -> bool:
        """Whether a step should be saved, by the number of steps or the minutes since the last one was."""
        steps, minutes = self.options.every_steps, self.options.every_minutes
        return (steps is not None and step % steps == 0) or (
            minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        )

    def save(self, state: TrainState, monitors: Mapping[str, Any], *, best: bool = False) -> None:
        """Saves the step that the state is at, unless it was saved already.

        Args:
            state: it may change as soon as this returns.
            monitors: the state of the monitors.
            best: mark it as the best checkpoint of the run.

        Raises:
            Exception: it, or the last one in the background, could not be written.
        """
        step = state.counters.step
        if step != self.saved_step:
            self.wait()
            self._start_writing(step, writing.content_of(state, monitors, self.ranks), best)
            self._saved_at, self.saved_step = time.monotonic(), step
        elif best:
            self.wait()
            if self.ranks.is_rank0:
                storage.mark_best(storage.path_of(self.folder, step))

    def check(self, state: TrainState) -> None:
        """Checks that the state can be saved, before there is something to lose.

        Raises:
            CheckpointError: the model or the optimizer keeps something that a checkpoint cannot hold.
        """
        writing.content_of(state, {}, self.ranks)

    def wait(self) -> None:
        """Returns when what is being saved is written.

        Raises:
            Exception: it could not be.
        """
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error:
            raise self._error

    def _start_writing(self, step: int, content: writing.Content, best: bool) -> None:
        if not self.options.async_:
            self._write(step, content, best)
            return
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in content.tensors.items()}
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        arguments = (step, writing.Content(copies, content.values), best, device)
        self._thread = threading.Thread(target=self._try_to_write, args=arguments, daemon=True)
        self._thread.start()

    def _try_to_write(self, step: int, content: writing.Content, best: bool, device: int | None) -> None:
        try:
            if device is not None:  # a thread begins on the first, where this rank would use memory
                torch.cuda.set_device(device)
            self._write(step, content, best)
        except Exception as error:  # the training thread raises it
            self._error = error

    def _write(self, step: int, content: writing.Content, best: bool) -> None:
        written = writing.write(self.folder, step, content, self.ranks, self._group)
        self.on_saved(step)
        if self.ranks.is_rank0:
            if best:
                storage.mark_best(written)
            storage.remove_old(self.folder, self.options.keep_last)
