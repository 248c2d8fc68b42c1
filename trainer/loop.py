"""The training loop, from the first step to the last checkpoint."""

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from trainer import checkpoint
from trainer.config import Config
from trainer.data import Batch, Data, eval_batches
from trainer.errors import UserError
from trainer.faults import first_non_finite
from trainer.meters import SampleRate, memory_mib
from trainer.metrics import higher_is_better
from trainer.monitor import Monitors, Progress
from trainer.objective import Objective
from trainer.precision import Precision
from trainer.state import TrainState
from trainer.stop import StopFlag, Stopped


class TrainingFailed(UserError):
    """The run cannot go on: its losses or gradients are not finite any more."""


@dataclass(frozen=True)
class Budget:
    """Where training ends: after so many optimizer steps, or so many training seconds."""

    steps: int | None
    seconds: float | None

    def fraction(self, step: int, seconds: float) -> float:
        if self.seconds is not None:
            return min(1.0, seconds / self.seconds)
        assert self.steps is not None
        return min(1.0, step / self.steps)


class Trainer:
    """Trains what a `TrainState` holds, from where it stands.

    Args:
        state: model, optimizer and all else that changes.
        data: the evaluation splits, and what the training batches are made of.
        objective: the loss and the metrics.
        precision: autocast and loss scale.
        budget: where training ends.
        config: the options of loop, checkpoints and evaluation batches.
        device: where the model is.
    """

    def __init__(
        self,
        state: TrainState,
        *,
        data: Data,
        objective: Objective,
        precision: Precision,
        budget: Budget,
        config: Config,
        device: torch.device,
    ) -> None:
        self.state = state
        self.counters = state.counters
        self.model = state.model
        self.optimizer = state.optimizer
        self.data = data
        self.objective = objective
        self.precision = precision
        self.budget = budget
        self.config = config
        self.loop = config.loop
        self.device = device

        number, unit = config.loop.eval_interval
        self.eval_every = number if unit == "steps" else number * state.loader.batches_per_epoch
        self.primary = f"{next(iter(data.evals))}/{objective.primary}"
        self.needs_create_graph = getattr(state.optimizer, "needs_create_graph", False)
        self.buffers = list(state.model.buffers())
        self.rate = SampleRate(state.loader.batch_size)

    def fit(self, folder: Path, monitors: Monitors, stop: StopFlag) -> None:
        """Trains until the budget or the patience is spent.

        Args:
            folder: where checkpoints go.
            monitors: who is told.
            stop: read between two steps; a signal ends the run with a checkpoint.

        Raises:
            Stopped: a signal came; a checkpoint was written.
            TrainingFailed: too many losses or gradients in a row were not finite.
        """
        self.folder, self.monitors = folder, monitors
        self.state.monitors = monitors
        checkpoint.sweep(folder)
        there = checkpoint.path_of(folder, self.counters.step).exists()  # the run went on from it
        self.saved_at, self.saved_step = time.monotonic(), self.counters.step if there else -1
        self.show_images()
        while not self.finished():
            refreshes = getattr(self.optimizer, "needs_refresh", False)
            self.train_step()
            monitors.tick(self.progress())
            if self.counters.step % self.loop.log_every == 0:
                self.report()
            if refreshes and monitors.options.curvature and hasattr(self.optimizer, "diagnostics"):
                self.report_curvature()
            if self.counters.step % self.eval_every == 0:
                self.evaluate()
            if stop.received is not None:
                self.save()
                raise Stopped(stop.received, self.counters.step)
            if self.checkpoint_due():
                self.save()
        if self.counters.evaluated_step != self.counters.step:
            self.evaluate()
        self.save()

    def show_images(self) -> None:
        """Shows the first batch of a new run as it will be augmented; the loader goes back to its start."""
        loader = self.state.loader
        if self.counters.step == 0 and self.data.kind == "images" and self.monitors.options.log_images:
            start = loader.state_dict()
            self.monitors.images(self.progress(), "train/batch", loader.next_batch()[0][0])
            loader.load_state_dict(start)

    def finished(self) -> bool:
        patience = self.loop.patience
        return self.progress().fraction >= 1 or (
            patience is not None and self.counters.evaluations_since_best >= patience
        )

    def progress(self) -> Progress:
        step, seconds = self.counters.step, self.counters.seconds
        epoch = step / self.state.loader.batches_per_epoch
        return Progress(step, epoch, seconds, self.budget.fraction(step, seconds))

    def train_step(self) -> None:
        """One optimizer step on one batch, all its micro-batches; the clock of the run runs here alone."""
        start = time.perf_counter()
        self.state.schedule.update(self.progress().fraction, self.counters.step)
        batches = self.state.loader.next_batch()
        saved_buffers = [buffer.clone() for buffer in self.buffers]

        self.model.train()
        losses, totals = self.forward_backward(batches)
        self.precision.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        if math.isfinite(losses.sum().item()) and math.isfinite(norm.item()):
            if self.loop.clip_norm is not None:
                clip_grads_with_norm_(self.model.parameters(), self.loop.clip_norm, norm)
            self.precision.scaler.step(self.optimizer)
            self.counters.skipped_in_a_row = 0
            if self.state.ema is not None:
                self.state.ema.update()
            self.state.window += totals
            self.counters.grad_norm = norm.item()
        else:
            self.skip_step(batches, losses, saved_buffers)
        self.precision.scaler.update()
        self.optimizer.zero_grad()

        self.counters.step += 1
        elapsed = time.perf_counter() - start
        self.counters.seconds += elapsed
        self.rate.add(elapsed)

    def forward_backward(self, batches: list[Batch]) -> tuple[Tensor, list[Tensor]]:
        """Adds up the gradients of the micro-batches; returns their losses [M] and their totals."""
        losses, totals = [], []
        for inputs, targets in batches:
            with self.precision.autocast():
                loss, total = self.objective(self.model(inputs), inputs, targets)
            scaled = self.precision.scaler.scale(loss / len(batches))
            scaled.backward(create_graph=self.needs_create_graph)
            losses.append(loss.detach())
            totals.append(total)
        return torch.stack(losses), totals

    def skip_step(self, batches: list[Batch], losses: Tensor, saved_buffers: list[Tensor]) -> None:
        """Undoes what the forward pass changed, and counts the fault."""
        for buffer, saved in zip(self.buffers, saved_buffers, strict=True):
            buffer.copy_(saved)
        scaler = self.precision.scaler
        if scaler.is_enabled() and scaler.get_scale() > 1 and losses.isfinite().all():
            return  # an overflow that a smaller loss scale will mend
        self.counters.skipped_steps += 1
        self.counters.skipped_in_a_row += 1
        step, loss = self.counters.step + 1, losses.mean().item()
        self.monitors.message(
            f"step {step} is skipped: the loss is {loss:g} and not all is finite", "warning"
        )
        if self.counters.skipped_in_a_row >= self.loop.max_bad_steps:
            where = first_non_finite(self.model, batches, self.precision)
            raise TrainingFailed(
                f"{self.counters.skipped_in_a_row} steps in a row were not finite, the last at step {step}: "
                f"loss {loss:g}, first in {where}; lower optimizer.lr, set loop.clip_norm, or look at the data"
            )

    def report(self) -> None:
        """Tells the monitors the training metrics since the last report."""
        metrics = {}
        if self.state.window:
            totals = torch.stack(self.state.window).cpu().double().sum(0)
            metrics = {f"train/{k}": v for k, v in self.objective.metrics(totals).items()}
            metrics["grad_norm"] = self.counters.grad_norm
            self.state.window.clear()
        metrics["lr"] = float(self.optimizer.param_groups[0]["lr"])
        if self.counters.skipped_steps:
            metrics["skipped_steps"] = self.counters.skipped_steps
        self.monitors.train(self.progress(), metrics, self.clock())

    def report_curvature(self) -> None:
        """Tells the monitors of a refresh of the optimizer's factors, at most every ``loop.log_every`` steps."""
        last, step = self.counters.curvature_step, self.counters.step
        if last is None or step - last >= self.loop.log_every:
            self.monitors.curvature(self.progress(), self.optimizer.diagnostics())  # type: ignore[attr-defined]
            self.counters.curvature_step = step

    def clock(self) -> dict[str, float]:
        return {"samples_per_second": self.rate.take(), "memory_mib": memory_mib(self.device)}

    def evaluate(self) -> None:
        """Evaluates every split, with the averaged weights too, and keeps the best."""
        start = time.perf_counter()
        metrics = self.evaluate_splits("")
        if self.state.ema is not None:
            with self.state.ema.applied():
                metrics |= self.evaluate_splits("_ema")
        self.counters.evaluated, self.counters.evaluated_step = metrics, self.counters.step
        clock = {"eval_seconds": time.perf_counter() - start}
        self.monitors.evaluation(self.progress(), metrics, clock)
        if self.monitors.options.histograms:
            self.monitors.histograms(self.progress(), dict(self.model.named_parameters()))
        self.keep_if_best(metrics[self.primary])

    def keep_if_best(self, value: float) -> None:
        counters = self.counters
        sign = 1 if higher_is_better(self.primary) else -1
        if math.isnan(value) or (counters.best is not None and sign * value <= sign * counters.best):
            counters.evaluations_since_best += 1
            return
        counters.best, counters.best_step, counters.evaluations_since_best = value, counters.step, 0
        if self.config.checkpoint.keep_best:
            checkpoint.mark_best(self.save())

    @torch.no_grad()
    def evaluate_splits(self, suffix: str) -> dict[str, float]:
        self.model.eval()
        options = self.config.data
        judge = dataclasses.replace(self.objective, label_smoothing=0.0)
        metrics: dict[str, float] = {}
        for name, split in self.data.evals.items():
            totals = []
            for inputs, targets in eval_batches(
                split, options["eval_batch_size"], num_workers=options["num_workers"]
            ):
                with self.precision.autocast():
                    totals.append(judge(self.model(inputs), inputs, targets)[1])
            summed = torch.stack(totals).cpu().double().sum(0)
            metrics |= {f"{name}{suffix}/{k}": v for k, v in self.objective.metrics(summed).items()}
        return metrics

    def checkpoint_due(self) -> bool:
        steps, minutes = self.config.checkpoint.every_steps, self.config.checkpoint.every_minutes
        return (steps is not None and self.counters.step % steps == 0) or (
            minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        )

    def save(self) -> Path:
        """Writes a checkpoint of the present step, unless this was just done."""
        if self.saved_step != self.counters.step:
            checkpoint.save(self.folder, self.state, keep_last=self.config.checkpoint.keep_last)
            self.saved_at, self.saved_step = time.monotonic(), self.counters.step
        return checkpoint.path_of(self.folder, self.counters.step)
