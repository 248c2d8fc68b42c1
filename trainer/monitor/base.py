"""What the training loop reports, and the interface of the sinks that receive it."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from trainer.errors import UserError, one_line
from trainer.monitor.guard import Guard
from trainer.options import Count, Natural
from trainer.registry import Registry

SINKS = Registry("sink", entry_points="trainer.sinks", explains=False)

Level = Literal["info", "warning", "error"]
Status = Literal["finished", "failed", "preempted"]


@dataclass(frozen=True)
class MonitorOptions:
    """The config group ``monitor``.

    Raises:
        ConfigError: a sink of this name does not exist.
    """

    sinks: list[str] = field(default_factory=lambda: ["console", "tensorboard", "jsonl", "runlog"])
    """Where records go, by registered name."""
    log_images: bool = True
    """Show the first batch as augmented (image data)."""
    histograms: bool = False
    """Show histograms of the parameters at each evaluation."""
    curvature: bool = True
    """Record the optimizer's curvature layer by layer, if it reports any."""
    predictions: Natural = 18
    """Images shown with their predicted class at each evaluation, wrong ones first (classification)."""
    sample_tokens: Natural = 200
    """Tokens that the model generates at each evaluation (text)."""
    sample_prompt: str | None = None
    """The text that it continues; None: the beginning of the text that is evaluated on."""
    profile_steps: Count = 10
    """Steps that are recorded under ``profile=true``, or measured under ``profile=memory``."""

    def __post_init__(self) -> None:
        for name in self.sinks:
            SINKS.get(name)


@dataclass(frozen=True)
class RunInfo:
    """What a sink may know of the run before its first step."""

    directory: Path
    name: str
    config: Mapping[str, Any]
    """The resolved config, plain dicts and lists."""
    summary: str
    """One line: model, parameters, data, device, precision."""
    total_steps: int | None
    """The budget in optimizer steps; None under a budget of seconds."""
    total_seconds: float | None
    """The budget in training seconds; None under a budget of steps."""
    steps_per_epoch: int
    primary: str
    """The metric that picks the best checkpoint, e.g. ``test/accuracy``."""
    resumed_step: int = 0
    """The step of the checkpoint from which this run continues; 0 for a new run."""


@dataclass(frozen=True)
class Progress:
    """How far a run is, after ``step`` optimizer steps."""

    step: int
    epoch: float
    seconds: float
    """Training seconds, evaluation excluded, summed over restarts."""
    fraction: float
    """Of the budget, 0 to 1."""
    best: float | None = None
    """The best value of the primary metric so far; None before the first that is a number."""
    best_step: int = 0
    """The step of the evaluation with the best value: ``step`` itself in the report of a new best."""

    @property
    def is_best(self) -> bool:
        """Whether the evaluation that is reported with this progress is the best so far."""
        return self.best is not None and self.best_step == self.step


class Sink:
    """Receives what a run reports. Every method does nothing here: a sink overrides those it needs.

    Calls come from one thread of the first rank, in the order of the steps. Metrics are the same numbers on
    every execution of the same run; what differs is in the clock, such as ``samples_per_second`` and ``memory_mib``.
    Metric names are ``train/loss``, ``train/accuracy`` or ``train/perplexity``, ``lr``, ``grad_norm`` and,
    from evaluations, SPLIT/loss and so on; an accuracy is a fraction, 0 to 1.
    """

    def __init__(self, run: RunInfo) -> None:
        """Opens the sink: a new run starts with nothing, a resumed one continues after `load_state_dict`."""

    def attach(self, monitors: "Sink") -> None:
        """Once all sinks of the run are open: gives them to the sink as one, if it has something to report to them."""

    def tick(self, progress: Progress) -> None:
        """After every step: must take no noticeable time."""

    def train(self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]) -> None:
        """Every ``loop.log_every`` steps."""

    def evaluation(
        self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]
    ) -> None:
        """After every evaluation, all splits at once."""

    def curvature(self, progress: Progress, layers: Mapping[str, Mapping[str, float]]) -> None:
        """The optimizer's report on each layer at a refresh, e.g. ``{"conv1": {"share": 0.3}}``."""

    def scalars(self, progress: Progress, values: Mapping[str, float]) -> None:
        """What a callback reports, by names such as ``sharpness/largest_eigenvalue``."""

    def images(self, progress: Progress, tag: str, images: Tensor) -> None:
        """A batch of inputs [N, C, H, W], C = 1 or 3, in any range."""

    def predictions(
        self, progress: Progress, tag: str, images: Tensor, predicted: Tensor, targets: Tensor
    ) -> None:
        """Images as in `images`, with the predicted and the true class of each, int64 [N]."""

    def text(self, progress: Progress, tag: str, text: str) -> None:
        """Text to be shown verbatim, such as a sample of a language model."""

    def histograms(self, progress: Progress, parameters: Mapping[str, Tensor]) -> None:
        """The parameters by name."""

    def message(self, text: str, level: Level = "info") -> None:
        """Something a person should read."""

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """The run has ended; metrics are those of its last evaluation. Closes the sink."""

    def state_dict(self) -> dict[str, Any]:
        """The state from which the sink continues after a restart; all that was reported until now is on disk then."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a checkpoint: removes what was written after it, which the run will report again."""


class Monitors(Sink):
    """All sinks of a run as one: every report to it is passed to each of them, in their order.

    A sink that fails once the run is described, as a console whose terminal is gone or a file on a full disk, does not
    end the run: the others get a warning.

    Check ``options`` before computing optional records, such as images or histograms. Ranks other than the first have
    the same options and no sinks.

    Args:
        run: the run that is reported.
        options: the config group; its sinks are opened.
        extra: further sinks by name, which come before those of the options.

    Raises:
        UserError: the files of a sink cannot be opened.
    """

    def __init__(
        self, run: RunInfo, options: MonitorOptions, extra: Mapping[str, Sink] | None = None
    ) -> None:
        self.options = options
        registered = {name: open_sink(name, run) for name in options.sinks}
        self.sinks: dict[str, Sink] = {**(extra or {}), **registered}
        self._guard = Guard(self.message)
        for name, sink in self.sinks.items():
            self._guard(name, sink.attach, self)

    def attach(self, monitors: Sink) -> None:
        """Does nothing: these are all sinks of the run."""

    def state_dict(self) -> dict[str, Any]:
        """The state of each sink by its name, without those that fail."""
        states = {name: self._guard(name, sink.state_dict) for name, sink in self.sinks.items()}
        return {name: state for name, state in states.items() if state is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Gives each sink its state; one that is not in the checkpoint continues with what it finds."""
        for name in self.sinks.keys() & state.keys():
            self.sinks[name].load_state_dict(state[name])


def check_sinks(options: MonitorOptions) -> None:
    """Checks that the sinks can be opened, as far as that is known before there is a run directory.

    A sink says it by its tag ``check``, a function that raises what is missing.

    Raises:
        MissingExtra: the package of a sink is not installed.
    """
    for name in options.sinks:
        SINKS.get(name).tags.get("check", lambda: None)()


def open_sink(name: str, run: RunInfo) -> Sink:
    """The sink of that name.

    Raises:
        UserError: its files cannot be opened; nothing is lost yet.
    """
    try:
        sink: Sink = SINKS.build({"name": name}, run)
    except OSError as error:
        raise UserError(f"monitor.sinks: {name} cannot be opened: {one_line(error)}") from None
    return sink


def _passed_to_each(report: Callable[..., None]) -> Callable[..., None]:
    """A method of `Monitors` that calls the method of this name of each sink."""

    @functools.wraps(report)
    def method(self: Monitors, *args: Any, **options: Any) -> None:
        for name, sink in self.sinks.items():
            self._guard(name, getattr(sink, report.__name__), *args, **options)

    return method


for _name, _report in vars(Sink).items():
    if not _name.startswith("_") and _name not in vars(Monitors):
        setattr(Monitors, _name, _passed_to_each(_report))
