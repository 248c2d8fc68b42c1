"""The training loop, from the first step to the last checkpoint."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch

from trainer.callbacks import Training
from trainer.checkpoint.manager import CheckpointManager
from trainer.checkpoint.state import Counters
from trainer.distributed.dtensor import full_tensor
from trainer.errors import one_line
from trainer.metrics import metric_of
from trainer.monitor import Monitors
from trainer.optim.protocols import CurvatureOptimizer, evaluation_weights
from trainer.signals import Preempted, StopSignal
from trainer.training.evaluation import evaluate_with_average
from trainer.training.flops import peak_flops, training_flops
from trainer.training.memory_profile import MemoryProfile
from trainer.training.parts import RunParts
from trainer.training.step import StepOutcome, TrainStep
from trainer.training.step_sync import Requests
from trainer.training.throughput import GpuReadings, Speed, memory_mib


class Trainer:
    """Trains the parts of a run from the step they are at, reports, evaluates and saves.

    Args:
        parts: what is trained.
        monitors: receive metrics, images and messages; their state is saved with the run's.
        checkpoints: where and when the run is saved.
        stop: read between two steps; a signal ends the run with a checkpoint.
    """

    def __init__(
        self, parts: RunParts, *, monitors: Monitors, checkpoints: CheckpointManager, stop: StopSignal
    ) -> None:
        self.parts = parts
        self.monitors = monitors
        self.checkpoints = checkpoints
        self.stop = stop
        self.options = parts.config.loop
        self.callbacks = parts.state.callbacks
        self.train_step = TrainStep(parts, self.requests)
        profile = monitors.sinks.get("profile")
        self.watched: Callable[[], AbstractContextManager[None]] = nullcontext
        if isinstance(profile, MemoryProfile):
            self.watched = profile.step
        number, unit = self.options.eval_interval
        self.eval_every = number if unit == "steps" else number * parts.state.loader.batches_per_epoch
        self.speed = Speed(parts.state.loader.batch_size)
        self.gpu = GpuReadings(parts.device)
        self.curvature: CurvatureOptimizer | None = None
        if monitors.options.curvature and isinstance(parts.optimizer, CurvatureOptimizer):
            self.curvature = parts.optimizer

    @property
    def counters(self) -> Counters:
        """How far the run has come."""
        return self.parts.counters

    def fit(self) -> None:
        """Trains until the budget or the patience is spent, or a callback asks for the end.

        Raises:
            Preempted: one of the ranks received a signal; a checkpoint was written.
            TrainingFailed: too many losses or gradients in a row were not finite.
        """
        if self.counters.step > 0 and self.parts.strategy.settles_buckets:
            self.train_step.settle_ddp_buckets()
        self.show_images()
        ends = self.callbacks.start(
            Training(**self.parts.seen_by_callbacks(), monitors=self.monitors, progress=self.parts.progress)
        )
        if self.was_saved_before_evaluation():
            ends = self.evaluate()
        while not (ends or self.parts.is_finished):
            refreshes = self.curvature is not None and self.curvature.needs_refresh
            with self.watched():
                outcome = self.train_step()
            if self.counters.step == 1:
                self.checkpoints.check(self.parts.state)  # the optimizer has a state now
            self.report(outcome)
            if refreshes:
                self.report_curvature()
            stop, ends = outcome.requests.stop, outcome.requests.end
            if outcome.requests.save or stop is not None or ends or self.parts.is_finished:
                self.save(ends=ends)  # first, as an evaluation may fail
            if stop is not None:
                self.checkpoints.wait()
                raise Preempted(stop, self.counters.step)
            if self.counters.step % self.eval_every == 0:
                ends = self.evaluate() or ends
        if self.counters.evaluated_step != self.counters.step:
            self.evaluate()
        self.callbacks.tell("end")
        reason = self.callbacks.withdraw()
        if reason is not None:  # it would end an extended run again: this step is saved anew without it
            self.checkpoints.saved_step = None
        self.save()
        self.checkpoints.wait()
        if reason is not None:
            self.monitors.message(f"ended at step {self.counters.step}: {reason}")

    def was_saved_before_evaluation(self) -> bool:
        """Whether the run resumes from a step that was to be evaluated after it was saved."""
        step = self.counters.step
        saved_here = step > 0 and self.checkpoints.saved_step == step
        return saved_here and step % self.eval_every == 0 and self.counters.evaluated_step != step

    def requests(self) -> Requests:
        """What this rank wants to be done after the step that is being taken."""
        is_due = self.checkpoints.is_due(self.counters.step + 1)
        return Requests(save=is_due, stop=self.stop.received, end=self.callbacks.stop_reason is not None)

    def save(self, *, best: bool = False, ends: bool = False) -> None:
        """Saves the present step.

        Args:
            best: mark it as the best so far.
            ends: whether the run ends here, if a callback has asked for that.
        """
        self.callbacks.agree_on_end()
        self.callbacks.ends_here = ends
        with evaluation_weights(self.parts.optimizer):
            self.checkpoints.save(self.parts.state, self.monitors.state_dict(), best=best)

    def show_images(self) -> None:
        """Shows the first batch of a new run as it will be augmented; the loader goes back to its start."""
        loader = self.parts.state.loader
        if self.counters.step == 0 and self.parts.data.kind == "images" and self.monitors.options.log_images:
            start = loader.state_dict()
            self.monitors.images(self.parts.progress(), "train/batch", loader.next_batch()[0][0])
            loader.load_state_dict(start)

    def report(self, outcome: StepOutcome) -> None:
        """Reports a step, and every ``loop.log_every`` steps the training metrics since the last time."""
        if outcome.warning is not None:
            self.monitors.message(outcome.warning, "warning")
        self.speed.add(outcome.seconds, outcome.waited, outcome.parts)
        self.monitors.tick(self.parts.progress())
        if self.counters.step % self.options.log_every == 0:
            memory = {"memory_mib": memory_mib(self.parts.device)}
            clock = {**self.speed.take(*self.flops), **memory, **self.gpu.read()}
            self.monitors.train(self.parts.progress(), self.take_metrics(), clock)

    @cached_property
    def flops(self) -> tuple[float | None, float | None]:
        """Floating-point operations of a sample, and those that the devices of all ranks can do in a second."""
        parts = self.parts
        sample, _ = parts.data.train.batch(torch.arange(1), None)
        peak = peak_flops(parts.device, parts.precision)
        return training_flops(parts.skeleton, sample), peak and peak * parts.ranks.world_size

    def take_metrics(self) -> dict[str, float]:
        """The training metrics since they were last taken."""
        metrics: dict[str, float] = {}
        totals = self.parts.state.window
        if totals is not None:
            metrics = {f"train/{key}": value for key, value in self.parts.objective.metrics(totals).items()}
            metrics["grad_norm"] = self.counters.grad_norm
            self.parts.state.window = None
        metrics["lr"] = float(self.parts.optimizer.param_groups[0]["lr"])
        if self.counters.skipped_steps:
            metrics["skipped_steps"] = self.counters.skipped_steps
        return metrics

    def report_curvature(self) -> None:
        """Reports a refresh of the optimizer's factors, at most every ``loop.log_every`` steps."""
        assert self.curvature is not None
        last, step = self.counters.curvature_step, self.counters.step
        if last is None or step - last >= self.options.log_every:
            self.monitors.curvature(self.parts.progress(), self.curvature.diagnostics())
            self.counters.curvature_step = step

    def evaluate(self) -> bool:
        """Evaluates every split, with the averaged weights too, reports it, and saves the best.

        Returns:
            Whether a callback asks for the end of the run.
        """
        start = time.perf_counter()
        try:
            metrics = evaluate_with_average(self.parts, self.stop)
        except Preempted:  # the evaluation is made up when the run goes on
            self.save()
            self.checkpoints.wait()
            raise
        self.counters.evaluated, self.counters.evaluated_step = metrics, self.counters.step
        is_best = self.is_new_best(metrics[self.parts.primary])
        progress, clock = self.parts.progress(), {"eval_seconds": time.perf_counter() - start}
        self.monitors.evaluation(progress, metrics, clock)
        if missing := [name for name, value in metrics.items() if math.isnan(value)]:
            what = f"the evaluation at step {progress.step} gave no number for {', '.join(missing)}"
            self.monitors.message(f"{what}: it does not count as best", "warning")
        with evaluation_weights(self.parts.optimizer):
            self.callbacks.tell("after_evaluation", metrics)
        if is_best and self.parts.config.checkpoint.keep_best:
            self.save(best=True, ends=True)
        with evaluation_weights(self.parts.optimizer):
            self.show_outputs()
        return self.callbacks.agree_on_end()

    def show_outputs(self) -> None:
        """Shows histograms of the parameters and outputs of the model; a failure of this is a warning.

        Where parameters are sharded it ends the run: other ranks may wait for this one to gather them.
        """
        progress = self.parts.progress()
        try:
            if self.monitors.options.histograms:
                parameters = self.parts.model.named_parameters()
                whole = {
                    name: full_tensor(p.detach()).cpu() for name, p in parameters
                }  # not all on the GPU at once
                self.monitors.histograms(progress, whole)
            self.parts.samples.show(progress, self.monitors)
        except Exception as error:
            if self.parts.strategy.shards_parameters:
                raise
            what = f"no outputs are shown of step {progress.step}"
            self.monitors.message(f"{what}: {type(error).__name__}: {one_line(error)}", "warning")

    def is_new_best(self, value: float) -> bool:
        """Whether a value of the primary metric is the best so far; counts it."""
        counters = self.counters
        if not metric_of(self.parts.primary).better(value, counters.best):
            counters.evaluations_since_best += 1
            return False
        counters.best, counters.best_step, counters.evaluations_since_best = value, counters.step, 0
        return True
