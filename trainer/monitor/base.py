"""What the training loop tells, and the interface of those who listen."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from trainer.metrics import is_better
from trainer.options import Count, Natural
from trainer.registry import Registry

SINKS = Registry("sink")

Level = Literal["info", "warning", "error"]
Status = Literal["finished", "failed", "preempted"]


@dataclass(frozen=True)
class MonitorOptions:
    """The config group ``monitor``.

    Raises:
        ConfigError: a sink of that name does not exist.
    """

    sinks: list[str] = field(default_factory=lambda: ["console", "tensorboard", "jsonl", "runlog"])
    """Where records go, by registered name."""
    log_images: bool = True
    """Show the first batch as augmented (image data)."""
    histograms: bool = False
    """Show histograms of the parameters at each evaluation."""
    curvature: bool = True
    """Follow the optimizer's curvature layer by layer, where it reports any."""
    predictions: Natural = 18
    """Images shown with their predicted class at each evaluation, wrong ones first (classification)."""
    sample_tokens: Natural = 200
    """Tokens that the model writes at each evaluation (text)."""
    sample_prompt: str | None = None
    """What it goes on from; None: the beginning of the text that is evaluated on."""
    profile_steps: Count = 10
    """Steps that ``profile=true`` records."""

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
    """The step of the checkpoint that this run goes on from; 0 for a new run."""


@dataclass(frozen=True)
class Progress:
    """How far a run is, after ``step`` optimizer steps."""

    step: int
    epoch: float
    seconds: float
    """Training seconds, evaluation excluded, summed over restarts."""
    fraction: float
    """Of the budget, 0 to 1."""


class Sink:
    """Receives what a run reports. Every method does nothing here: a sink overrides those it needs.

    Calls come from one thread of the first rank, in the order of the steps. Metrics are the same numbers on
    every execution of the same run; the clock holds what differs: ``samples_per_second``, ``memory_mib``.
    Metric names are ``train/loss``, ``train/accuracy`` or ``train/perplexity``, ``lr``, ``grad_norm`` and,
    from evaluations, SPLIT/loss and so on; an accuracy is a fraction, 0 to 1.
    """

    def __init__(self, run: RunInfo) -> None:
        """Opens the sink: a new run starts with nothing, a resumed one goes on after `load_state_dict`."""

    def tick(self, progress: Progress) -> None:
        """After every step: must cost nothing that shows."""

    def train(self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]) -> None:
        """Every ``loop.log_every`` steps."""

    def evaluation(
        self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]
    ) -> None:
        """After every evaluation, all splits at once."""

    def curvature(self, progress: Progress, layers: Mapping[str, Mapping[str, float]]) -> None:
        """What the optimizer reports of each layer at a refresh, e.g. ``{"conv1": {"share": 0.3}}``."""

    def images(self, progress: Progress, tag: str, images: Tensor) -> None:
        """A batch of inputs [N, C, H, W], C = 1 or 3, in any range."""

    def predictions(
        self, progress: Progress, tag: str, images: Tensor, predicted: Tensor, targets: Tensor
    ) -> None:
        """Images as in `images`, with the class that the model takes each for and the true one, int64 [N]."""

    def text(self, progress: Progress, tag: str, text: str) -> None:
        """Lines to be read as they are, such as what a language model wrote."""

    def histograms(self, progress: Progress, parameters: Mapping[str, Tensor]) -> None:
        """The parameters by name."""

    def message(self, text: str, level: Level = "info") -> None:
        """Something a person should read."""

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """The run ends, in whatever way; metrics are those of its last evaluation. Closes the sink."""

    def state_dict(self) -> dict[str, Any]:
        """What the sink must know to go on from a checkpoint taken now; what it was told is on disk then."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to a checkpoint: what was written after it is undone, as the run will report it again."""


class Monitors(Sink):
    """All sinks of a run as one.

    Whoever reports asks ``options`` first what is wanted beside metrics. Ranks other
    than the first have the same options with no sinks.

    Args:
        run: given to each sink.
        options: which sinks there are, and what else is wanted.
        extra_sinks: by name, come before those of the options. Each is made from these monitors, so that it may
            report to the others; it is told of a run's end before they are closed.
    """

    def __init__(
        self,
        run: RunInfo,
        options: MonitorOptions,
        extra_sinks: Mapping[str, Callable[["Monitors"], Sink]] | None = None,
    ) -> None:
        self.options = options
        self.sinks: dict[str, Sink] = {name: make(self) for name, make in (extra_sinks or {}).items()}
        self.sinks |= {name: SINKS.build({"name": name}, run) for name in options.sinks}

    def tick(self, progress: Progress) -> None:
        for sink in self.sinks.values():
            sink.tick(progress)

    def train(self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]) -> None:
        for sink in self.sinks.values():
            sink.train(progress, metrics, clock)

    def evaluation(
        self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]
    ) -> None:
        for sink in self.sinks.values():
            sink.evaluation(progress, metrics, clock)

    def curvature(self, progress: Progress, layers: Mapping[str, Mapping[str, float]]) -> None:
        for sink in self.sinks.values():
            sink.curvature(progress, layers)

    def images(self, progress: Progress, tag: str, images: Tensor) -> None:
        for sink in self.sinks.values():
            sink.images(progress, tag, images)

    def predictions(
        self, progress: Progress, tag: str, images: Tensor, predicted: Tensor, targets: Tensor
    ) -> None:
        for sink in self.sinks.values():
            sink.predictions(progress, tag, images, predicted, targets)

    def text(self, progress: Progress, tag: str, text: str) -> None:
        for sink in self.sinks.values():
            sink.text(progress, tag, text)

    def histograms(self, progress: Progress, parameters: Mapping[str, Tensor]) -> None:
        for sink in self.sinks.values():
            sink.histograms(progress, parameters)

    def message(self, text: str, level: Level = "info") -> None:
        for sink in self.sinks.values():
            sink.message(text, level)

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        for sink in self.sinks.values():
            sink.finish(status, metrics)

    def state_dict(self) -> dict[str, Any]:
        return {name: sink.state_dict() for name, sink in self.sinks.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As each sink's; one that the checkpoint does not know goes on with what it finds."""
        for name in self.sinks.keys() & state.keys():
            self.sinks[name].load_state_dict(state[name])


class Best:
    """The best value of a metric so far, the step it was reached at, and all metrics of that evaluation."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.step = 0
        self.metrics: dict[str, float] = {}

    @property
    def value(self) -> float | None:
        return self.metrics.get(self.metric)

    def update(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether this evaluation is better than all before; nan never is."""
        if not is_better(self.metric, metrics.get(self.metric, math.nan), self.value):
            return False
        self.step, self.metrics = step, dict(metrics)
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "metrics": self.metrics}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.metrics = state["step"], dict(state["metrics"])
