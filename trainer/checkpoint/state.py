"""What must survive a restart."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from trainer.data import TrainLoader
from trainer.errors import CheckpointError
from trainer.optim import Schedule
from trainer.optim.ema import EMA


@dataclass
class Counters:
    """Progress counters and the state of early stopping."""

    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    seconds: float = 0.0
    """Training seconds, summed over restarts; without evaluation and checkpoints."""
    skipped_steps: int = 0
    """Steps that were skipped because the loss or a gradient was not finite."""
    skipped_in_a_row: int = 0
    """Of these, those since the last step that was taken."""
    grad_norm: float = 0.0
    """Norm of the gradient at the last step, before clipping."""
    best: float | None = None
    """Best value of the primary metric."""
    best_step: int = 0
    evaluations_since_best: int = 0
    curvature_step: int | None = None
    """The step at which the optimizer's curvature was last reported."""
    evaluated: dict[str, float] = field(default_factory=dict)
    """Metrics of the last evaluation."""
    evaluated_step: int = -1
    """The step of the last evaluation; -1 before the first."""

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "Counters":
        """The counters of a checkpoint.

        Raises:
            CheckpointError: it has others than this version.
        """
        names = {field.name for field in fields(cls)}
        if names != saved.keys():
            odd = ", ".join(sorted(names ^ saved.keys()))
            raise CheckpointError(
                f"the checkpoint's counters are of another version: {odd} is in one of them only"
            )
        return cls(**saved)


@dataclass
class TrainState:
    """The parts of a run whose state a checkpoint holds."""

    model: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    scaler: GradScaler
    loader: TrainLoader
    ema: EMA | None
    counters: Counters = field(default_factory=Counters)
    window: list[Tensor] = field(default_factory=list)
    """The totals of the training metrics over all ranks, summed since they were last reported: one tensor, or none."""

    def tensors(self) -> dict[str, Any]:
        """Model, optimizer and average, keyed by parameter: what is sharded when the model is."""
        tensors = {"model": self.model.state_dict(), "optimizer": self._optimizer_state()}
        if self.ema is not None:
            tensors["ema"] = self.ema.state_dict()
        return tensors

    def values(self) -> dict[str, Any]:
        """Everything else; it is the same on every rank."""
        return {
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loader": self.loader.state_dict(),
            "counters": asdict(self.counters),
            "window": list(self.window),
        }

    def load(self, tensors: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Takes over what `tensors` and `values` gave.

        Raises:
            CheckpointError: it is of another model or optimizer, or has other counters.
        """
        counters = Counters.of(values["counters"])
        _check_same_shapes(self.model.state_dict(), tensors["model"])
        self._load_optimizer(tensors["optimizer"])
        self.model.load_state_dict(tensors["model"])
        if self.ema is not None and "ema" in tensors:
            self.ema.load_state_dict(tensors["ema"])
        self.schedule.load_state_dict(values["schedule"])
        self.scaler.load_state_dict(values["scaler"])
        self.loader.load_state_dict(values["loader"])
        self.counters = counters
        self.window = list(values["window"])

    def _parameter_names(self) -> list[str]:
        """In the optimizer's own order, by which its state dict numbers them."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [names[p] for group in self.optimizer.param_groups for p in group["params"]]

    def _optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state dict with parameters named instead of numbered."""
        names = self._parameter_names()
        state = self.optimizer.state_dict()
        groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
        # a few optimizers keep entries of their own in their state, under a string
        named = {names[i] if isinstance(i, int) else i: values for i, values in state["state"].items()}
        return {"state": named, "param_groups": groups}

    def _load_optimizer(self, saved: Mapping[str, Any]) -> None:
        numbers = {name: i for i, name in enumerate(self._parameter_names())}
        theirs = {name for group in saved["param_groups"] for name in group["params"]}
        if theirs != numbers.keys():
            odd = sorted(theirs ^ numbers.keys())[0]
            raise CheckpointError(
                f"the checkpoint's optimizer has other parameters: {odd} is in one of them only"
            )
        groups = [{**g, "params": [numbers[name] for name in g["params"]]} for g in saved["param_groups"]]
        state = {numbers.get(name, name): values for name, values in saved.get("state", {}).items()}
        try:
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        except (ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint is of another optimizer: {error}") from None


def _check_same_shapes(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    for name in [*ours, *theirs]:
        if name not in ours or name not in theirs:
            where = "the checkpoint" if name in ours else "this model"
            raise CheckpointError(f"the checkpoint is of another model: {name} is missing in {where}")
        if ours[name].shape != theirs[name].shape:
            saved, built = tuple(theirs[name].shape), tuple(ours[name].shape)
            raise CheckpointError(
                f"the checkpoint is of another model: {name} has the shape {saved}, the model's has {built}"
            )


def seed_all(seed: int) -> None:
    """Seeds the random number generators of Python, NumPy and torch in this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**63)


def random_state() -> dict[str, Any]:
    """The state of this process's random number generators."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Puts this process's generators back to what `random_state` gave; those of GPUs if there are as many."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
