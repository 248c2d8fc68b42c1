"""The registry of callbacks, their interface, and what they may see of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from trainer.data import Batch, Data
from trainer.distributed.ranks import Ranks
from trainer.errors import one_line_errors
from trainer.monitor import Progress, Sink
from trainer.objectives import Objective
from trainer.options import check_options
from trainer.registry import Registry

CALLBACKS = Registry("callbacks", entry_points="trainer.callbacks", refusals=(ValueError,))
"""Callbacks by name, subclasses of `Callback`; their keyword-only arguments are options, ``callbacks.NAME.OPTION``. The
tag ``may_differ`` says that what is learnt does not depend on it, so that a run may go on with it, without it, or with
other options; with the tag ``ends_run``, of one that may ask for the end, that goes for a finished run, too."""

REQUEST = "training.stop"
"""Beside the names of callbacks in their saved state: a request for the end of the run."""

Moment = Literal["start", "after_backward", "before_update", "after_update", "after_evaluation", "end"]


@dataclass
class Setup:
    """What is known of a run before it starts."""

    model: nn.Module
    """The model itself, which is not wrapped."""
    optimizer: Optimizer
    objective: Objective
    data: Data
    ranks: Ranks
    device: torch.device
    """This rank's."""
    scaler: GradScaler
    """By whose scale the loss, and so the gradients until the update, are multiplied; 1 but for fp16."""
    batch_size: int
    """Samples of a step, over all ranks and micro-batches."""
    micro_batches: int
    """Of a step, on each rank."""
    log_every: int
    """Steps between two reports of the training metrics."""
    primary: str
    """The metric that picks the best checkpoint, such as ``test/accuracy``."""
    is_sharded: bool
    """Whether each rank holds only some rows of each parameter."""
    replicas: int
    """Ranks that hold the same rows."""
    has_average: bool
    """Whether the weights are averaged, so that each split is evaluated with the average, too, as ``SPLIT_ema``."""


@dataclass
class Training(Setup):
    """What a callback sees of a run while it trains."""

    monitors: Sink
    """All sinks as one; on ranks other than the first there are none."""
    progress: Callable[[], Progress]
    stop_reason: str | None = None
    """Why this rank wants the run to end."""

    def report(self, values: Mapping[str, float]) -> None:
        """Sends numbers to the sinks, by names such as ``sharpness/largest``; those of the first rank count."""
        self.monitors.scalars(self.progress(), values)

    def stop(self, reason: str) -> None:
        """Asks for the run to end as if its budget were spent.

        The ranks agree on it: one that asks ends all. After ``start`` and ``after_evaluation`` that is at once, after
        ``after_backward`` at the end of the step, after the other moments at the end of the next step. A checkpoint
        that is written in between keeps the request.
        """
        self.stop_reason = self.stop_reason or reason


class Callback:
    """Called at a few moments by every rank. Every method does nothing here: a callback overrides those it needs.

    What the callback does may change the model, gradients and optimizer, and must then be the same on all ranks. Its
    state must be so, too: that of the first rank is saved. What it computes from a rank's own batches it sums by
    ``training.ranks``. It draws random numbers from a generator of its own, or training draws others than without it.
    """

    def check(self, setup: Setup) -> None:
        """Before anything is written.

        Raises:
            ConfigError: the callback does not fit the run.
        """

    def start(self, training: Training) -> None:
        """Before the first step of this session, in the state from which the run goes on."""

    def after_backward(self, training: Training, batch: Batch, last: bool) -> None:
        """After the backward pass of each micro-batch, whose gradients, divided by their number, are added up.

        An optimizer that takes several gradients a step, such as ``sam_sgd`` or ``lbfgs``, has it called for each.

        After the last one they are those of the whole batch, and what is changed of them counts for the gradient's
        norm. Before, with several ranks, they are this rank's own.
        """

    def before_update(self, training: Training) -> None:
        """Before the optimizer's step, with the gradients of the whole batch, unscaled and not clipped yet.

        Not called in a step that is skipped because something is not finite.
        """

    def after_update(self, training: Training) -> None:
        """After the optimizer's step, which is counted now; the gradients are gone."""

    def after_evaluation(self, training: Training, metrics: Mapping[str, float]) -> None:
        """After an evaluation, with its metrics by full name, the same on all ranks, and the weights that had them."""

    def end(self, training: Training) -> None:
        """When the run has reached its end."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on in the same way: numbers, text, tensors, lists and dicts of these."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave."""


class Callbacks:
    """The callbacks of a run by name, in their order. Until `start` none is called.

    Args:
        chosen: the config: options by name of callback.

    Raises:
        ConfigError: a callback refuses its options.
    """

    def __init__(self, chosen: Mapping[str, Mapping[str, Any]]) -> None:
        self.by_name: dict[str, Callback] = {
            name: CALLBACKS.build({"name": name, **options}) for name, options in chosen.items()
        }
        self.training: Training | None = None
        self.ends_here = False
        """Whether the run ends at the step that is saved, if one of them has asked for that."""
        self._asked: str | None = None  # why one of them has asked in a session before

    def check(self, setup: Setup) -> None:
        """As `Callback.check`, of each.

        Raises:
            BuildError: one of them fails.
        """
        for name, callback in self.by_name.items():
            with one_line_errors(f"callbacks={name} cannot be checked", type(callback).__module__):
                callback.check(setup)

    def start(self, training: Training) -> bool:
        """Gives them what they may see from now on; every rank calls it.

        Returns:
            Whether the run ends at once. It need not if one had asked for the end of the next step when it was saved.
        """
        self.training = training
        if self.ends_here:
            training.stop_reason = self._asked
        self.tell("start")
        ends = self.agree_on_end()
        training.stop_reason = training.stop_reason or self._asked
        return ends

    def tell(self, moment: Moment, *what: Any) -> None:
        """Calls the method of this name of each."""
        if self.training is not None:
            for callback in self.by_name.values():
                getattr(callback, moment)(self.training, *what)

    @property
    def stop_reason(self) -> str | None:
        """Why one of them has asked this rank for the end of the run; None: none has."""
        return self.training.stop_reason if self.training is not None else None

    def agree_on_end(self) -> bool:
        """Whether one of them has asked any rank for the end of the run; every rank calls it, and knows why then."""
        if self.training is None or not self.by_name:
            return False
        ranks, own = self.training.ranks, self.training.stop_reason
        if not ranks.sum(torch.tensor(float(own is not None))).item():
            return False
        reasons = ranks.all_gather_object(own)
        self.training.stop_reason = next((reason for reason in reasons if reason is not None), None)
        return True

    def withdraw(self) -> str | None:
        """Takes back what was asked for, since the run has ended, and returns why; every rank calls it."""
        if self.training is None or not self.agree_on_end():
            return None
        reason, self.training.stop_reason = self.training.stop_reason, None
        return reason

    def state_dict(self) -> dict[str, Any]:
        """The state of each by its name, and what they have asked for."""
        states = {name: callback.state_dict() for name, callback in self.by_name.items()}
        if self.stop_reason is not None:
            states[REQUEST] = {"reason": self.stop_reason, "ends_here": self.ends_here}
        return states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives each its state; one that is not in the checkpoint begins anew, one that is gone asks for nothing."""
        for name in self.by_name.keys() & state.keys():
            self.by_name[name].load_state_dict(state[name])
        if REQUEST in state and state.keys() - {REQUEST} <= self.by_name.keys():
            self._asked, self.ends_here = state[REQUEST]["reason"], state[REQUEST]["ends_here"]


def check_callbacks(chosen: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Checks the config group ``callbacks``, options by name.

    Returns:
        All options of each, converted to their types.

    Raises:
        ConfigError: a name or an option is unknown, or a value is of the wrong type or out of range.
    """
    return {
        name: check_options(CALLBACKS.get(name).options, options, f"callbacks.{name}")
        for name, options in chosen.items()
    }
