"""What the memory of a few steps is for: ``profile=memory``."""

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer

from trainer._private import record_cuda_memory, write_cuda_memory
from trainer.distributed.dtensor import local_tensor
from trainer.monitor import Progress, RunInfo, Sink, Status
from trainer.rundir.files import MEMORY, atomic_write_text
from trainer.rundir.strict_json import dumps
from trainer.training.parts import RunParts
from trainer.training.tensor_memory import TensorShare, mebibytes, tensors_of
from trainer.training.throughput import memory_mib


class MemoryProfile(Sink):
    """Measures this rank's share of the session's first steps, each within `step`, and then says what it found.

    A number is the most of all measured steps, in MiB. Parameters, buffers, gradients and the optimizer's state are
    those at the end of the optimizer's step; activations are what autograd keeps for the backward pass, the batch
    included. On a GPU the peak is that of its allocator within the steps, elsewhere `memory_mib` of the process so far.

    On a GPU every allocation is recorded, too, for https://pytorch.org/memory_viz.

    Args:
        run: the files go to its directory.
        parts: of the run.
        steps: how many to measure.
    """

    def __init__(self, run: RunInfo, parts: RunParts, steps: int) -> None:
        self.path = run.directory / MEMORY
        self.parts = parts
        self.mib: dict[str, float] = {}
        """By what it is for."""
        self._monitors = Sink(run)  # until it is attached
        self._first = self._last = run.resumed_step + 1
        self._left = steps
        self._on_gpu = parts.device.type == "cuda"
        if self._on_gpu:
            record_cuda_memory(True)

    def attach(self, monitors: Sink) -> None:
        """Takes the sinks to which it reports."""
        self._monitors = monitors

    @contextmanager
    def step(self) -> Iterator[None]:
        """A context that is a step of the trainer; nothing is measured once there were enough of them."""
        if not self._left:
            yield
            return
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self.parts.device)
        kept = KeptForBackward(self.parts.model)
        measured = self.parts.optimizer.register_step_post_hook(self._measure_tensors)
        try:
            with kept:
                yield
        finally:
            measured.remove()
        peak = "peak of the step" if self._on_gpu else "peak of the process"
        self._take({"activations": kept.peak / 2**20, peak: memory_mib(self.parts.device)})

    def tick(self, progress: Progress) -> None:
        """Writes the files after the last step that is measured."""
        if self._left:
            self._left, self._last = self._left - 1, progress.step
            if not self._left:
                self._write()

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """Writes the files if the run ends before."""
        if self._left and self.mib:
            self._write()

    def _measure_tensors(self, optimizer: Optimizer, *_: object) -> None:
        parts = self.parts
        sizes = mebibytes(tensors_of(parts.model, optimizer, parts.state.ema), TensorShare.bytes_here)
        del sizes["all of these"]  # they are not all there at the same time
        gradients = [local_tensor(p.grad) for p in parts.model.parameters() if p.grad is not None]
        self._take({**sizes, "gradients": sum(grad.nbytes for grad in gradients) / 2**20})

    def _take(self, mib: Mapping[str, float]) -> None:
        self.mib |= {name: max(size, self.mib.get(name, 0.0)) for name, size in mib.items()}

    def _write(self) -> None:
        self._left = 0
        self.path.parent.mkdir(exist_ok=True)
        sizes = ", ".join(f"{name} {size:.2f}" for name, size in self.mib.items())
        self._monitors.message(f"memory in MiB of steps {self._first} to {self._last}: {sizes}")
        record = {"steps": [self._first, self._last], "mib": self.mib}
        atomic_write_text(self.path, dumps(record, indent=2) + "\n")
        if self._on_gpu:
            snapshot = self.path.with_suffix(".pickle")
            write_cuda_memory(snapshot)
            record_cuda_memory(False)
            self._monitors.message(f"open {snapshot} at https://pytorch.org/memory_viz")


class KeptForBackward(saved_tensors_hooks):
    """A context that counts the bytes that autograd keeps for backward passes, without parameters and buffers.

    Storage that several kept tensors share counts once, and until the last of them is freed.

    Args:
        model: whose parameters and buffers do not count, nor what FSDP gathers of them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(self._keep, lambda kept: kept.tensor)
        self.model = model
        self.now = 0
        """Bytes that are kept."""
        self.peak = 0
        """The most so far."""
        self._keepers: Counter[int] = Counter()  # by the address of a storage

    def _keep(self, tensor: Tensor) -> "Kept":
        kept = Kept(tensor)
        storage = local_tensor(tensor).untyped_storage()
        if storage.data_ptr() in self._keepers or storage.data_ptr() not in self._of_the_model():
            self._keepers[storage.data_ptr()] += 1
            if self._keepers[storage.data_ptr()] == 1:
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
            weakref.finalize(kept, self._free, storage.data_ptr(), storage.nbytes())
        return kept

    def _free(self, address: int, size: int) -> None:
        self._keepers[address] -= 1
        if not self._keepers[address]:
            del self._keepers[address]
            self.now -= size

    def _of_the_model(self) -> set[int]:
        """The addresses of its storages, which differ while FSDP has gathered a layer."""
        tensors = chain(self.model.parameters(), self.model.buffers())
        return {local_tensor(tensor).untyped_storage().data_ptr() for tensor in tensors}


@dataclass(eq=False)
class Kept:
    """What autograd keeps instead of a tensor, and lets go when it would let go that."""

    tensor: Tensor
