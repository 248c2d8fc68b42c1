"""What a run is made of, and where it ends."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from trainer.checkpoint.state import Counters, TrainState
from trainer.config.schema import Config
from trainer.data import Data
from trainer.distributed.ranks import Ranks
from trainer.distributed.strategies import Strategy
from trainer.monitor import Progress
from trainer.objectives import Objective
from trainer.training.precision import Precision
from trainer.training.samples import SampleOutputs


@dataclass(frozen=True)
class Budget:
    """Where training ends: after a number of optimizer steps, or of training seconds; the other one is None."""

    steps: int | None
    seconds: float | None

    def fraction(self, step: int, seconds: float) -> float:
        """How much of the budget is spent after that many steps and seconds, from 0 to 1."""
        if self.seconds is not None:
            return min(1.0, seconds / self.seconds)
        assert self.steps is not None
        return min(1.0, step / self.steps)


@dataclass(frozen=True)
class RunParts:
    """All that a run trains with, as `trainer.training.build.build` makes it from the config."""

    config: Config
    state: TrainState
    """Model, optimizer and all else that changes: what a checkpoint holds."""
    data: Data
    """The evaluation splits, and what the training batches are made of."""
    objective: Objective
    precision: Precision
    strategy: Strategy
    """How the model is distributed over the ranks, and this rank's device."""
    budget: Budget
    samples: SampleOutputs
    skeleton: nn.Module | None
    """The model as it was built, on the device ``meta``: to count what it computes."""

    @property
    def model(self) -> nn.Module:
        """The model itself; training calls ``strategy.module``, which may wrap it."""
        return self.state.model

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of the model's parameters."""
        return self.state.optimizer

    @property
    def counters(self) -> Counters:
        """How far the run has come."""
        return self.state.counters

    @property
    def ranks(self) -> Ranks:
        """The processes that train together."""
        return self.strategy.ranks

    @property
    def device(self) -> torch.device:
        """This rank's."""
        return self.strategy.device

    @property
    def primary(self) -> str:
        """The metric that picks the best checkpoint, such as ``test/accuracy``."""
        return f"{next(iter(self.data.evals))}/{self.objective.primary}"

    @property
    def is_finished(self) -> bool:
        """Whether the budget is spent, or the patience."""
        patience = self.config.loop.patience
        spent = self.budget.fraction(self.counters.step, self.counters.seconds) >= 1
        return spent or (patience is not None and self.counters.evaluations_since_best >= patience)

    def seen_by_callbacks(self) -> dict[str, Any]:
        """The fields of `trainer.callbacks.Setup`."""
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "objective": self.objective,
            "data": self.data,
            "ranks": self.ranks,
            "device": self.device,
            "scaler": self.state.scaler,
            "batch_size": self.state.loader.batch_size,
            "micro_batches": self.state.loader.micro_batches,
            "log_every": self.config.loop.log_every,
            "primary": self.primary,
            "is_sharded": self.strategy.shards_parameters,
            "replicas": self.strategy.gradient_replicas,
            "has_average": self.state.ema is not None,
        }

    def progress(self) -> Progress:
        """How far the run has come, as monitors are told."""
        step, seconds = self.counters.step, self.counters.seconds
        epoch = step / self.state.loader.batches_per_epoch
        fraction = self.budget.fraction(step, seconds)
        return Progress(step, epoch, seconds, fraction, self.counters.best, self.counters.best_step)
