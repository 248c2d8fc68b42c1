"""The typed config of a run: dataclasses for the fixed groups, and the checks that span several options."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from trainer.callbacks import CALLBACKS, check_callbacks
from trainer.data import DATA, LoaderOptions
from trainer.distributed.strategies import STRATEGIES
from trainer.errors import ConfigError
from trainer.models import MODELS
from trainer.monitor import SINKS, MonitorOptions
from trainer.objectives import OBJECTIVES
from trainer.optim import OPTIMIZERS, SCHEDULES
from trainer.options import (
    MAY_DIFFER,
    Count,
    Fraction,
    NonNegative,
    Positive,
    build_dataclass,
    check_options,
    options_of,
)
from trainer.registry import Registry

REGISTRIES: dict[str, Registry] = {
    r.kind: r for r in (MODELS, DATA, OBJECTIVES, OPTIMIZERS, SCHEDULES, STRATEGIES)
}
"""By config group, of which each has one component chosen by its ``name``."""

COMPONENTS: dict[str, Registry] = {**REGISTRIES, "callbacks": CALLBACKS}
"""As `REGISTRIES`, and the group of which any number is chosen."""

EXTENSIBLE = (*COMPONENTS.values(), SINKS)
"""All registries, in which modules of the user's can register components."""

GROUPS = {*REGISTRIES, "precision"}
"""Config groups whose files have a ``name``."""

DEFAULT_EPOCHS = 20
"""The budget of a run whose config sets none."""


@dataclass(frozen=True)
class LoopOptions:
    """The config group ``loop``."""

    max_epochs: Annotated[Count | None, MAY_DIFFER] = None
    """Passes over the training set. At most one of the three budgets is set; with none it is 20 epochs."""
    max_steps: Annotated[Count | None, MAY_DIFFER] = None
    """Optimizer steps."""
    max_time: Annotated[Positive | None, MAY_DIFFER] = None
    """Seconds of training, without evaluation and checkpoints, summed over restarts."""
    accumulate: Annotated[Literal["auto"] | Count, MAY_DIFFER] = 1
    """Micro-batches into which each batch of ``data.batch_size`` samples is split; ``auto``: the fewest that fit into
    the GPUs' memory, found at the start and kept in the run's config."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient over all parameters; a longer one is scaled down to it."""
    eval_every: Annotated[Count | str, MAY_DIFFER] = "1 epoch"
    """Steps, or ``N epochs``, between evaluations; there is always one at the end."""
    log_every: Annotated[Count, MAY_DIFFER] = 10
    """Steps between records of training metrics."""
    ema: Fraction | None = None
    """Decay per step of an exponential moving average of the weights, evaluated in addition to the raw ones."""
    loss_chunks: Annotated[Literal["auto"] | Count, MAY_DIFFER] = 1
    """Stretches of a sequence whose logits exist at a time, of a language model; ``auto``: so many that each takes at
    most 256 MiB. More than one cost a second pass through the output layer."""
    label_smoothing: Fraction = 0.0
    """Share of the target probability that is spread over all classes; in training only."""
    patience: Annotated[Count | None, MAY_DIFFER] = None
    """Evaluations without a new best metric after which training stops early."""
    max_bad_steps: Annotated[Count, MAY_DIFFER] = 10
    """Skipped steps in a row after which the run fails; a step is skipped if its loss or gradient is not finite."""
    activation_checkpointing: Annotated[Literal["none", "full"] | Count, MAY_DIFFER] = "none"
    """Blocks of the model that keep only their inputs and run again in the backward pass: all, or every k-th."""
    compile: Annotated[bool, MAY_DIFFER] = False
    """Compile the model with torch.compile; block by block where it is sharded."""
    channels_last: Annotated[bool, MAY_DIFFER] = False
    """Keep the model's 4-D tensors in channels-last memory format."""

    @property
    def eval_interval(self) -> tuple[int, Literal["steps", "epochs"]]:
        """``eval_every`` as a number and its unit.

        Raises:
            ConfigError: it is neither a number of steps nor a text such as ``2 epochs``.
        """
        if isinstance(self.eval_every, int):
            return self.eval_every, "steps"
        match = re.fullmatch(r"([1-9]\d*) (step|epoch)s?", self.eval_every)
        if not match:
            raise ConfigError(
                f"loop.eval_every={self.eval_every} is wrong: it must be a number of steps or '2 epochs'"
            )
        return int(match[1]), "steps" if match[2] == "step" else "epochs"


@dataclass(frozen=True)
class PrecisionOptions:
    """The config group ``precision``."""

    name: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward and backward passes; parameters, optimizer and factors stay float32."""


@dataclass(frozen=True)
class CheckpointOptions:
    """The config group ``checkpoint``."""

    every_steps: Annotated[Count | None, MAY_DIFFER] = None
    """Steps between checkpoints; there is always one at the end of the run and when a signal stops it."""
    every_minutes: Annotated[Positive | None, MAY_DIFFER] = 10.0
    """Minutes of wall-clock time between checkpoints."""
    async_: Annotated[bool, MAY_DIFFER] = False
    """Write checkpoints in the background, from a copy, while training continues."""
    keep_last: Annotated[Count, MAY_DIFFER] = 2
    """The number of newest checkpoints that are kept."""
    keep_best: Annotated[bool, MAY_DIFFER] = True
    """Write a checkpoint at each new best evaluation, and keep the newest of them in addition."""
    resume: str = "auto"
    """``auto``: resume from the newest complete checkpoint in the run directory, if any; ``none``; or the path of
    another run or checkpoint, from whose weights and optimizer state a new run starts, with the options given here."""
    weights: str | None = None
    """The path of a run, of a checkpoint or of a file.safetensors, from whose weights alone a new run starts."""
    weights_strict: Annotated[bool, MAY_DIFFER] = True
    """Refuse weights that do not match the model by name and shape; false: take those that do."""
    accept_changed_data: Annotated[bool, MAY_DIFFER] = False
    """Resume although the data, or the teacher, are not those that the run was trained on."""


@dataclass(frozen=True)
class DryRun:
    """A dry run that estimates the memory of each rank of a larger run."""

    world_size: Count
    """The number of ranks."""


@dataclass(frozen=True)
class Config:
    """The config of a run.

    ``model``, ``data``, ``objective``, ``optimizer``, ``schedule`` and ``parallel`` are mappings,
    ``{name: ..., option: value, ...}``, checked against the options of the component that ``name`` picks.
    """

    name: Annotated[str, MAY_DIFFER]
    model: dict[str, Any]
    data: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    parallel: Annotated[dict[str, Any], MAY_DIFFER]
    objective: dict[str, Any] = field(default_factory=lambda: {"name": "auto"})
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options by name of callback."""
    seed: int = 0
    plugins: Annotated[list[str], MAY_DIFFER] = field(default_factory=list)
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], MAY_DIFFER] = "auto"
    deterministic: Annotated[bool, MAY_DIFFER] = False
    """Use deterministic algorithms only, on a GPU too, where they are slower."""
    dry_run: Annotated[bool | DryRun, MAY_DIFFER] = False
    profile: Annotated[bool | Literal["parts", "memory"], MAY_DIFFER] = False
    """A trace of a few steps, what the memory of a few steps is for, or the shares of the step's parts, all along."""
    loop: LoopOptions = field(default_factory=LoopOptions)
    precision: PrecisionOptions = field(default_factory=PrecisionOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    monitor: Annotated[MonitorOptions, MAY_DIFFER] = field(default_factory=MonitorOptions)

    @property
    def loader(self) -> LoaderOptions:
        """Of the group ``data``, the options that every data set has."""
        loader: LoaderOptions = build_dataclass(LoaderOptions, self.data)
        return loader


def check_config(values: Mapping[str, Any]) -> Config:
    """Checks plain, resolved values and makes the typed config of them.

    Raises:
        ConfigError: an option is unknown, of the wrong type, out of range, or excludes another.
    """
    # on top of a frozen config, group=name is a value in place of the group's
    given = dict(values)
    for group, name in values.items():
        if group in GROUPS and isinstance(name, str):
            given[group] = {"name": name}
    if isinstance(values.get("callbacks"), list):
        given["callbacks"] = {name: {} for name in values["callbacks"]}
    checked = check_options(options_of(Config), given, "")
    for group, registry in REGISTRIES.items():
        checked[group] = registry.check(checked[group])
    checked["callbacks"] = check_callbacks(checked["callbacks"])
    config = build_dataclass(Config, checked)
    if not re.fullmatch(r"[\w+-][\w.+-]*", config.name):
        raise ConfigError(
            f"name={config.name} is wrong: it must consist of letters, digits and . _ + - and begin with no dot"
        )
    _check_loop(config.loop, config.schedule["warmup"])
    if config.checkpoint.weights is not None and config.checkpoint.resume not in ("auto", "none"):
        raise ConfigError(
            "checkpoint.resume and checkpoint.weights exclude each other: a run starts from one of them"
        )
    parallel = config.parallel["name"]
    if config.loop.channels_last and REGISTRIES["parallel"].get(parallel).target.shards_parameters:
        raise ConfigError(
            f"loop.channels_last=true does not work with parallel={parallel}, which shards weights by rows"
        )
    return config


def _check_loop(loop: LoopOptions, warmup: NonNegative) -> None:
    budgets = {key: getattr(loop, key) for key in ("max_epochs", "max_steps", "max_time")}
    given = [f"loop.{key}={value:g}" for key, value in budgets.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude each other: set all but one of them to null")
    if loop.max_time is not None and warmup >= 1:
        raise ConfigError(
            f"schedule.warmup={warmup:g} counts steps, which loop.max_time does not fix: give a share below 1"
        )
    _ = loop.eval_interval
