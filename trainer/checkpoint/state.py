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

from trainer.callbacks import Callbacks
from trainer.data import TrainLoader
from trainer.errors import CheckpointError
from trainer.optim import Schedule
from trainer.optim.ema import EMA
from trainer.optim.protocols import HasTwoWeights


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
    callbacks: Callbacks = field(default_factory=lambda: Callbacks({}))
    data: Mapping[str, str] = field(default_factory=dict)
    """The fingerprint of the data that it is trained on."""
    counters: Counters = field(default_factory=Counters)
    window: Tensor | None = None
    """The totals of the training metrics over all ranks, summed since they were last reported: one tensor, or none."""

    def tensors(self) -> dict[str, Any]:
        """Model, optimizer and average, keyed by parameter: what is sharded when the model is."""
        tensors = {
            "model": self.model.state_dict(),
            "buffers": self._buffers(),
            "optimizer": self._optimizer_state(),
        }
        if self.ema is not None:
            tensors["ema"] = self.ema.state_dict()
        return tensors

    def values(self) -> dict[str, Any]:
        """Everything else; it is the same on every rank."""
        return {
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loader": self.loader.state_dict(),
            "data": dict(self.data),
            "counters": asdict(self.counters),
            "window": self.window,
            "callbacks": self.callbacks.state_dict(),
        }

    def load(self, tensors: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Takes over what `tensors` and `values` gave.

        Raises:
            CheckpointError: it is of another model or optimizer, or has other counters.
        """
        counters = Counters.of(values["counters"])
        self._load_model_and_optimizer(tensors, own_options=False)
        if self.ema is not None and "ema" in tensors:
            self.ema.load_state_dict(tensors["ema"])
        self.schedule.load_state_dict(values["schedule"])
        self.scaler.load_state_dict(values["scaler"])
        self.loader.load_state_dict(values["loader"])
        self.callbacks.load_state_dict(values.get("callbacks", {}))
        self.counters = counters
        self.window = values["window"]  # on the CPU, as the steps add to it

    def start_from(self, tensors: Mapping[str, Any]) -> None:
        """Takes over weights, averages and what the optimizer keeps of each parameter; its options stay as built.

        Raises:
            CheckpointError: it is of another model or optimizer.
        """
        self._load_model_and_optimizer(tensors, own_options=True)
        self.start_average(tensors.get("ema"))

    def start_average(self, saved: dict[str, Any] | None = None) -> None:
        """Begins the average of the weights, if there is one, with a saved average or else the present weights."""
        if self.ema is not None and saved is not None:
            self.ema.load_state_dict(saved)
        elif self.ema is not None:
            self.ema.restart()

    def _load_model_and_optimizer(self, tensors: Mapping[str, Any], *, own_options: bool) -> None:
        _check_same_shapes(self.model.state_dict(), tensors["model"])
        self._load_optimizer(tensors["optimizer"], own_options=own_options)
        self.model.load_state_dict(tensors["model"])
        if isinstance(self.optimizer, HasTwoWeights):
            self.optimizer.train()
        for name, buffer in self._buffers().items():
            saved = tensors["buffers"].get(name)
            if saved is not None and saved.shape == buffer.shape:
                buffer.copy_(saved)

    def _buffers(self) -> dict[str, Tensor]:
        """The buffers that the model's state dict leaves out."""
        saved = self.model.state_dict().keys()
        return {name: buffer for name, buffer in self.model.named_buffers() if name not in saved}

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

    def _load_optimizer(self, saved: Mapping[str, Any], *, own_options: bool) -> None:
        numbers = {name: i for i, name in enumerate(self._parameter_names())}
        theirs = {name for group in saved["param_groups"] for name in group["params"]}
        if theirs != numbers.keys():
            odd = sorted(theirs ^ numbers.keys())[0]
            raise CheckpointError(
                f"the checkpoint's optimizer has other parameters: {odd} is in one of them only"
            )
        if own_options:
            groups = self.optimizer.state_dict()["param_groups"]
        else:
            groups = [{**g, "params": [numbers[name] for name in g["params"]]} for g in saved["param_groups"]]
        state = {numbers.get(name, name): values for name, values in saved["state"].items()}
        try:
            self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        except (ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint is of another optimizer: {error}") from None


def _check_same_shapes(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    for name in [*ours, *theirs]:
        if name not in ours or name not in theirs:
            where = "the checkpoint" if name in ours else "this model"
            raise CheckpointError(f"the checkpoint is of another model: {name} is missing in {where}")
        if _shape(ours[name]) != _shape(theirs[name]):
            saved, built = _shape(theirs[name]), _shape(ours[name])
            raise CheckpointError(
                f"the checkpoint is of another model: {name} has the shape {saved}, the model's has {built}"
            )


def _shape(value: Any) -> tuple[int, ...]:
    """Of a tensor; a module's extra state may be something else, which has none."""
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def seed_all(seed: int) -> None:
    """Seeds the random number generators of Python, NumPy and torch in this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**63)


def random_state() -> dict[str, Any]:
    """The state of this process's random number generators: lists, numbers and text, which JSON can hold."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(state) for state in torch.cuda.get_rng_state_all()]
        if torch.cuda.is_available()
        else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Puts this process's generators back to what `random_state` gave; those of GPUs if there are as many."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(_from_hex(state["torch"]))
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_from_hex(one) for one in state["cuda"]])


def _hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
