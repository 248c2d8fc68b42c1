"""One optimizer step: forward, backward, what the ranks agree on, update."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from trainer.checkpoint.state import random_state, set_random_state
from trainer.data import Batch
from trainer.distributed.dtensor import local_tensor
from trainer.optim.protocols import (
    CurvatureOptimizer,
    EvaluatesAgain,
    TakesTwoGradients,
    differentiates_gradient,
    evaluation_weights,
)
from trainer.training.nonfinite import count_skipped_step
from trainer.training.parts import RunParts
from trainer.training.step_parts import StepParts
from trainer.training.step_sync import Requests, StepResults, StepSync, precise_dtype, sync_step
from trainer.training.torch_random import TorchRandom


@dataclass(frozen=True)
class StepOutcome:
    """What follows from a step, the same on all ranks."""

    requests: Requests
    """What the ranks want to be done now."""
    warning: str | None
    """Why the step was skipped, where a person should know."""
    seconds: float
    """How long it took on this rank."""
    waited: float
    """Of these, until its batch was there."""
    parts: Mapping[str, float]
    """Of these, in each of `trainer.metrics.STEP_PARTS`; empty without ``profile=parts``."""


class TrainStep:
    """Takes optimizer steps on the batches that come next: ``step()``, called by all ranks.

    Args:
        parts: what is trained.
        requests: asked at the end of each backward pass, so that a signal still counts for that step.
    """

    def __init__(self, parts: RunParts, requests: Callable[[], Requests] = Requests) -> None:
        self.parts = parts
        self.requests = requests
        self._curvature = parts.optimizer if isinstance(parts.optimizer, CurvatureOptimizer) else None
        self._timed = StepParts(parts.device, on=parts.config.profile == "parts")
        self._noise = TorchRandom(parts.device)  # of the step's first pass, where there are several
        self._create_graph = differentiates_gradient(parts.optimizer)
        self._buffers = list(parts.model.buffers())
        self._statistics = [buffer for buffer in self._buffers if buffer.is_floating_point()]
        self.is_under_way = False
        """Whether a step has begun to change what a checkpoint holds, and has not ended; so after a failure in it."""
        self._time_since_sync = 0.0  # seconds of the last step after its synchronisation
        self._synced_at = 0.0

    def __call__(self) -> StepOutcome:
        """One step on one batch, all its micro-batches; the clock of the run advances here only.

        Raises:
            TrainingFailed: too many steps in a row were not finite.
        """
        start = time.perf_counter()
        parts, state, counters = self.parts, self.parts.state, self.parts.counters
        state.schedule.update(parts.progress().fraction, counters.step)
        asked = time.monotonic()
        batches = state.loader.next_batch()
        waited = time.monotonic() - asked
        self.is_under_way = True
        saved_buffers = [buffer.clone() for buffer in self._buffers]

        with self._timed("forward_backward"):
            losses, totals = self._gradients(batches)
        parts.precision.scaler.unscale_(parts.optimizer)
        with self._timed("collectives"):
            sync = self._sync(losses, totals, start)
        warning = None
        if sync.finite:
            self._update(sync, batches, losses)
        else:
            self._restore(saved_buffers)
            warning = count_skipped_step(parts, batches, sync)
        parts.precision.scaler.update()
        parts.optimizer.zero_grad()

        counters.step += 1
        counters.seconds += sync.seconds
        if sync.finite:
            state.callbacks.tell("after_update")
        self.is_under_way = False
        end = time.perf_counter()
        self._time_since_sync = end - self._synced_at
        return StepOutcome(sync.requests, warning, end - start, waited, self._timed.take())

    def settle_ddp_buckets(self) -> None:
        """One forward and backward pass on the next batch whose results are discarded.

        In its first backward pass in a process, DDP puts gradients into buckets by the order of the parameters, then
        rearranges the buckets by the order in which gradients arrived. Sums are rounded differently in the two
        arrangements: without this, the first step of a resumed run would differ from the same step of a run that was
        not interrupted.
        """
        state = self.parts.state
        position, random_numbers = state.loader.state_dict(), random_state()
        saved_buffers = [buffer.clone() for buffer in self._buffers]
        self._forward_backward(state.loader.next_batch())
        self.parts.optimizer.zero_grad()
        self._restore(saved_buffers)
        state.loader.load_state_dict(position)
        set_random_state(random_numbers)

    def _gradients(self, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """As `_forward_backward`; if the optimizer takes two gradients, the second one, and all else of the first."""
        optimizer = self.parts.optimizer
        if isinstance(optimizer, TakesTwoGradients | EvaluatesAgain):
            self._noise = TorchRandom(self.parts.device)
        first = self._forward_backward(batches)
        if isinstance(optimizer, TakesTwoGradients):
            optimizer.climb(self.parts.ranks.sum(self._squared_norm()).sqrt().item())
            self._evaluate_again(batches)
            optimizer.descend()
        return first

    def _evaluate_again(self, batches: list[Batch]) -> Tensor:
        """Replaces the gradients by those at the present weights, with the noise of the first pass.

        Nothing else is left of it: neither random numbers nor running statistics go on.

        Returns:
            The losses of this rank's micro-batches, [M].
        """
        self.parts.optimizer.zero_grad()
        buffers = [buffer.clone() for buffer in self._buffers]
        with self._noise.again():
            losses, _ = self._forward_backward(batches)
        self._restore(buffers)
        return losses

    def _closure(self, batches: list[Batch], losses: Tensor) -> Callable[[], float]:
        """What an optimizer evaluates the step's batch by: at first it has the losses and gradients that are there.

        The loss is the mean over all ranks, like the gradient, so that they all decide the same.
        """
        first, ranks = [losses], self.parts.ranks

        def evaluate() -> float:
            here = first.pop() if first else self._evaluate_again(batches)
            return ranks.sum(here.mean()).item() / ranks.world_size

        return evaluate

    def _forward_backward(self, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """Adds up the gradients of this rank's micro-batches; returns their losses [M] and the sum of their totals."""
        with twice_differentiable() if self._create_graph else nullcontext():
            return self._micro_batches(batches)

    def _micro_batches(self, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        parts, scaler = self.parts, self.parts.precision.scaler
        parts.model.train()
        losses, totals = [], []
        for number, batch in enumerate(batches, 1):
            last = number == len(batches)
            with parts.strategy.micro_batch(last=last):
                with parts.precision.autocast():
                    loss, total = parts.objective.loss(parts.strategy.module, batch)
                scaler.scale(loss / len(batches)).backward(create_graph=self._create_graph)
            losses.append(loss.detach())
            totals.append(total)
            parts.state.callbacks.tell("after_backward", batch, last)
        return torch.stack(losses), torch.stack(totals).sum(0)

    def _sync(self, losses: Tensor, totals: Tensor, start: float) -> StepSync:
        squared_norm = self._squared_norm()
        self._synced_at = time.perf_counter()
        results = StepResults(
            losses=losses,
            totals=totals,
            squared_norm=squared_norm,
            seconds=self._synced_at - start + self._time_since_sync,
            requests=self.requests(),
        )
        return sync_step(self.parts.ranks, results, self._statistics)

    def _squared_norm(self) -> Tensor:
        """This rank's share of the squared norm of the gradient, in the widest floats of the device."""
        parameters = self.parts.model.parameters()
        norm = get_total_norm([local_tensor(p.grad) for p in parameters if p.grad is not None])
        return norm.to(precise_dtype(norm.device)) ** 2 / self.parts.strategy.gradient_replicas

    def _update(self, sync: StepSync, batches: list[Batch], losses: Tensor) -> None:
        """Clips the gradient, takes the optimizer's step, and counts it."""
        parts, clip_norm = self.parts, self.parts.config.loop.clip_norm
        parts.state.callbacks.tell("before_update")
        if clip_norm is not None:
            parameters = [p for p in parts.model.parameters() if p.grad is not None]
            norm = torch.tensor(sync.grad_norm, dtype=parameters[0].dtype)
            clip_grads_with_norm_(parameters, clip_norm, norm)
        refreshes = self._curvature is not None and self._curvature.needs_refresh
        with self._timed("refresh" if refreshes else "optimizer"):
            if isinstance(parts.optimizer, EvaluatesAgain):
                parts.optimizer.step(self._closure(batches, losses))
            else:
                parts.precision.scaler.step(parts.optimizer)
        if parts.state.ema is not None:
            with evaluation_weights(parts.optimizer):
                parts.state.ema.update()
        parts.counters.skipped_in_a_row = 0
        parts.counters.grad_norm = sync.grad_norm
        window = parts.state.window
        parts.state.window = sync.totals if window is None else window + sync.totals

    def _restore(self, saved_buffers: list[Tensor]) -> None:
        """Undoes what the forward pass changed."""
        for buffer, saved in zip(self._buffers, saved_buffers, strict=True):
            buffer.copy_(saved)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Has attention computed by its plain formula, since torch has no second derivative of its fused kernels.

    A gradient with a graph and its parameter refer to each other, of which torch warns; `zero_grad` parts them.
    """
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Using backward\(\) with create_graph=True")
        yield
