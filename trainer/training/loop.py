"""The training loop, from the first step to the last checkpoint."""

import dataclasses
import math
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from trainer.checkpoint import storage
from trainer.checkpoint.manager import CheckpointManager
from trainer.checkpoint.state import TrainState, random_state, set_random_state
from trainer.config.schema import Config
from trainer.data import Batch, Data, eval_batches
from trainer.distributed.dtensor import full_tensor, local_tensor
from trainer.distributed.strategies import Strategy
from trainer.errors import UserError
from trainer.metrics import higher_is_better
from trainer.monitor import Monitors, Progress
from trainer.signals import Preempted, StopSignal
from trainer.training.nonfinite import first_non_finite
from trainer.training.objectives import Objective
from trainer.training.precision import Precision
from trainer.training.samples import SampleOutputs
from trainer.training.step_sync import StepSync, sync_step
from trainer.training.throughput import SampleRate, memory_mib


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
        parallel: how the model is spread over the ranks, and on which device it is.
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
        strategy: Strategy,
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
        self.strategy = strategy
        self.ranks = strategy.ranks
        self.device = strategy.device
        self.examples = SampleOutputs(
            self.model, data=data, objective=objective, precision=precision, strategy=strategy, config=config
        )

        number, unit = config.loop.eval_interval
        self.eval_every = number if unit == "steps" else number * state.loader.batches_per_epoch
        self.primary = f"{next(iter(data.evals))}/{objective.primary}"
        self.needs_create_graph = getattr(state.optimizer, "needs_create_graph", False)
        self.buffers = list(state.model.buffers())
        self.statistics = [buffer for buffer in self.buffers if buffer.is_floating_point()]
        self.rate = SampleRate(state.loader.batch_size)
        self.stop: StopSignal | None = None
        self.mid_step = False
        """Whether a step has begun to change what a checkpoint holds, and has not ended."""
        self.saved_at = time.monotonic()
        self.uncounted = 0.0  # seconds of the last step after the ranks had agreed on its time

    def fit(self, folder: Path, monitors: Monitors, stop: StopSignal) -> None:
        """Trains until the budget or the patience is spent.

        Args:
            folder: where checkpoints go.
            monitors: who is told.
            stop: read between two steps; a signal ends the run with a checkpoint.

        Raises:
            Preempted: a signal came to one of the ranks; a checkpoint was written.
            TrainingFailed: too many losses or gradients in a row were not finite.
        """
        options = self.config.checkpoint
        self.checkpoints = CheckpointManager(
            folder, self.ranks, keep_last=options.keep_last, background=options.async_
        )
        self.monitors, self.stop = monitors, stop
        self.state.monitors = monitors
        present = storage.path_of(folder, self.counters.step)
        went_on_from_it = self.ranks.run_on_rank0(present.exists)
        self.saved_at, self.saved_step = time.monotonic(), self.counters.step if went_on_from_it else -1
        if self.counters.step > 0 and self.strategy.needs_rehearsal:
            self.rehearse()
        self.show_images()
        while not self.finished():
            refreshes = getattr(self.optimizer, "needs_refresh", False)
            agreed = self.train_step()
            monitors.tick(self.progress())
            if self.counters.step % self.loop.log_every == 0:
                self.report()
            if refreshes and monitors.options.curvature and hasattr(self.optimizer, "diagnostics"):
                self.report_curvature()
            if self.counters.step % self.eval_every == 0:
                self.evaluate()
            if agreed.stop is not None:
                self.save()
                self.checkpoints.wait()
                raise Preempted(agreed.stop, self.counters.step)
            if agreed.save:
                self.save()
        if self.counters.evaluated_step != self.counters.step:
            self.evaluate()
        self.save()
        self.checkpoints.wait()

    def rehearse(self) -> None:
        """Goes through the next step without taking it, so that it is not the first one in this process."""
        place, numbers = self.state.loader.state_dict(), random_state()
        saved_buffers = [buffer.clone() for buffer in self.buffers]
        self.model.train()
        self.forward_backward(self.state.loader.next_batch())
        self.optimizer.zero_grad()
        self.restore(saved_buffers)
        self.state.loader.load_state_dict(place)
        set_random_state(numbers)

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

    def train_step(self) -> StepSync:
        """One optimizer step on one batch, all its micro-batches; the clock of the run runs here alone."""
        start = time.perf_counter()
        self.state.schedule.update(self.progress().fraction, self.counters.step)
        batches = self.state.loader.next_batch()
        self.mid_step = True
        saved_buffers = [buffer.clone() for buffer in self.buffers]

        self.model.train()
        losses, totals = self.forward_backward(batches)
        self.precision.scaler.unscale_(self.optimizer)
        agreed = self.sync(losses, totals, start)
        if agreed.finite:
            self.update(agreed.grad_norm)
            self.state.window.append(agreed.totals)
        else:
            self.skip_step(batches, agreed, saved_buffers)
        self.precision.scaler.update()
        self.optimizer.zero_grad()

        self.counters.step += 1
        self.counters.seconds += agreed.seconds
        self.mid_step = False
        end = time.perf_counter()
        self.uncounted = end - self.agreed_at
        self.rate.add(end - start)
        return agreed

    def forward_backward(self, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """Adds up the gradients of this rank's micro-batches; returns their losses [M] and totals, added up."""
        losses, totals = [], []
        for number, (inputs, targets) in enumerate(batches, 1):
            with self.strategy.micro_batch(last=number == len(batches)):
                with self.precision.autocast():
                    loss, total = self.objective(self.strategy.module(inputs), inputs, targets)
                scaled = self.precision.scaler.scale(loss / len(batches))
                scaled.backward(create_graph=self.needs_create_graph)
            losses.append(loss.detach())
            totals.append(total)
        return torch.stack(losses), torch.stack(totals).sum(0)

    def sync(self, losses: Tensor, totals: Tensor, start: float) -> StepSync:
        """What the ranks make of the step together, before the parameters change."""
        norm = get_total_norm([local_tensor(p.grad) for p in self.model.parameters() if p.grad is not None])
        self.agreed_at = time.perf_counter()
        return sync_step(
            self.ranks,
            losses=losses,
            totals=totals,
            squared_norm=norm.double() ** 2 / self.strategy.gradient_replicas,
            seconds=self.agreed_at - start + self.uncounted,
            save=self.checkpoint_due(),
            stop=self.stop.received if self.stop else None,
            buffers=self.statistics,
        )

    def update(self, norm: float) -> None:
        """Takes the optimizer's step."""
        if self.loop.clip_norm is not None:
            parameters = [p for p in self.model.parameters() if p.grad is not None]
            total = torch.tensor(norm, dtype=parameters[0].dtype)
            clip_grads_with_norm_(parameters, self.loop.clip_norm, total)
        self.precision.scaler.step(self.optimizer)
        self.counters.skipped_in_a_row = 0
        if self.state.ema is not None:
            self.state.ema.update()
        self.counters.grad_norm = norm

    def skip_step(self, batches: list[Batch], agreed: StepSync, saved_buffers: list[Tensor]) -> None:
        """Undoes what the forward pass changed, and counts the fault."""
        self.restore(saved_buffers)
        scaler = self.precision.scaler
        if scaler.is_enabled() and scaler.get_scale() > 1 and agreed.losses_finite:
            return  # an overflow that a smaller loss scale will mend
        self.counters.skipped_steps += 1
        self.counters.skipped_in_a_row += 1
        step, loss = self.counters.step + 1, self.objective.metrics(agreed.totals)["loss"]
        self.monitors.message(
            f"step {step} is skipped: the loss is {loss:g} and not all is finite", "warning"
        )
        if self.counters.skipped_in_a_row >= self.loop.max_bad_steps:
            where = first_non_finite(self.model, batches, self.precision, self.strategy)
            raise TrainingFailed(
                f"{self.counters.skipped_in_a_row} steps in a row were not finite, the last at step {step}: "
                f"loss {loss:g}, first in {where}; lower optimizer.lr, set loop.clip_norm, or look at the data"
            )

    def restore(self, saved_buffers: list[Tensor]) -> None:
        for buffer, saved in zip(self.buffers, saved_buffers, strict=True):
            buffer.copy_(saved)

    def report(self) -> None:
        """Tells the monitors the training metrics since the last report."""
        metrics = {}
        if self.state.window:
            totals = torch.stack(self.state.window).sum(0)
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
            parameters = {name: full_tensor(p.detach()) for name, p in self.model.named_parameters()}
            self.monitors.histograms(self.progress(), parameters)
        self.examples.show(self.progress(), self.monitors)
        self.keep_if_best(metrics[self.primary])

    def keep_if_best(self, value: float) -> None:
        counters = self.counters
        sign = 1 if higher_is_better(self.primary) else -1
        if math.isnan(value) or (counters.best is not None and sign * value <= sign * counters.best):
            counters.evaluations_since_best += 1
            return
        counters.best, counters.best_step, counters.evaluations_since_best = value, counters.step, 0
        if self.config.checkpoint.keep_best:
            self.save(best=True)

    def evaluate_splits(self, suffix: str) -> dict[str, float]:
        self.model.eval()
        options = self.config.data
        judge = dataclasses.replace(self.objective, label_smoothing=0.0)
        metrics: dict[str, float] = {}
        for name, split in self.data.evals.items():
            totals = []
            place = (self.ranks.rank, self.ranks.world_size, options["num_workers"])
            batches = eval_batches(split, options["eval_batch_size"], *place)
            with self.strategy.inference(), closing(batches):
                for inputs, targets in batches:
                    with self.precision.autocast():
                        totals.append(judge(self.model(inputs), inputs, targets)[1])
            summed = self.ranks.sum(torch.stack(totals).cpu().double().sum(0))
            metrics |= {f"{name}{suffix}/{k}": v for k, v in self.objective.metrics(summed).items()}
        return metrics

    def checkpoint_due(self) -> bool:
        """Whether the step that is being taken should be saved."""
        steps, minutes = self.config.checkpoint.every_steps, self.config.checkpoint.every_minutes
        return (steps is not None and (self.counters.step + 1) % steps == 0) or (
            minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        )

    def save(self, best: bool = False) -> None:
        """Saves the present step, unless this was just done; ``best`` marks it as the best so far."""
        if self.saved_step != self.counters.step:
            self.checkpoints.save(self.state, best=best)
            self.saved_at, self.saved_step = time.monotonic(), self.counters.step
        elif best:
            self.checkpoints.mark_best(self.counters.step)
