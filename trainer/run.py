"""One run, from its config to its result: the only place that knows all the parts."""

import dataclasses
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from trainer import checkpoint
from trainer.blocks import blocks_of, recompute
from trainer.config import DEFAULT_EPOCHS, Config
from trainer.data import DATA, Data, TrainLoader, hold_out
from trainer.data.random import mix
from trainer.distributed import ALONE, Ranks
from trainer.ema import EMA
from trainer.errors import ConfigError, UserError, one_line
from trainer.loop import Budget, Trainer, TrainingFailed
from trainer.models import MODELS
from trainer.monitor import Monitors, Profile, RunInfo, Status
from trainer.objective import OBJECTIVES
from trainer.optim import OPTIMIZERS, SCHEDULES, Schedule, param_groups
from trainer.parallel import PARALLEL, Parallel
from trainer.precision import Precision
from trainer.rundir import RunDirectory, StatusSink, again
from trainer.schema import plain
from trainer.state import TrainState, seed_all
from trainer.status import CRASHED, FINISHED, PREEMPTED, read_status, write_status
from trainer.stop import StopFlag, Stopped


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    code: int
    metrics: dict[str, float]
    """Of the last evaluation."""
    primary: str
    """The name of the metric that picks the best."""


def build(config: Config, ranks: Ranks = ALONE) -> Trainer:
    """Builds a run's parts, with Python's, NumPy's and torch's random numbers seeded; writes nothing.

    All ranks build the same model; from then on each has random numbers of its own.

    Raises:
        UserError: an option does not fit the others, data is missing, a package is not installed.
    """
    check_ranks(config, ranks)
    device, data, model = ranks.together(lambda: build_parts(config, ranks))
    parallel: Parallel = PARALLEL.build(config.parallel, ranks, device, config.precision.name)
    parallel.spread(model, compiled=config.loop.compile)
    ema = EMA(model, config.loop.ema) if config.loop.ema is not None else None
    groups = param_groups(model, config.optimizer["decay_norms_and_biases"])
    if not groups:
        raise ConfigError(f"model={config.model['name']} has no trainable parameter")
    optimizer = OPTIMIZERS.build(config.optimizer, model, groups)
    if getattr(optimizer, "needs_create_graph", False) and ranks.world_size > 1:
        raise ConfigError(
            f"optimizer={config.optimizer['name']} differentiates the gradient again, which parallel="
            f"{config.parallel['name']} does not allow: train it on one rank with parallel=none"
        )
    loader = TrainLoader(
        data.train,
        batch_size=config.data["batch_size"],
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        micro_batches=config.loop.accumulate,
        num_workers=config.data["num_workers"],
    )
    precision = Precision(config.precision.name, device)
    if hasattr(optimizer, "grad_scaler"):  # an optimizer that reads the loss scale
        optimizer.grad_scaler = precision.scaler
    if not ranks.first:
        seed_all(mix(config.seed, ranks.rank))
    state = TrainState(
        model=model,
        optimizer=optimizer,
        schedule=Schedule(optimizer, SCHEDULES.build(config.schedule), config.schedule["warmup"]),
        scaler=precision.scaler,
        loader=loader,
        ema=ema,
    )
    return Trainer(
        state,
        data=data,
        objective=OBJECTIVES[objective_of(config)](config.loop.label_smoothing),
        precision=precision,
        budget=budget_of(config, loader.batches_per_epoch),
        config=config,
        parallel=parallel,
    )


def build_parts(config: Config, ranks: Ranks) -> tuple[torch.device, Data, nn.Module]:
    """What a rank builds on its own: it finds its device and its data, and makes the model on the CPU."""
    device = pick_device(config.device, ranks)
    seed_all(config.seed)
    data = hold_out(DATA.build(config.data, device, config.seed), config.data["holdout"])
    model = build_model(config, data)
    initialize_lazy_layers(model, data)
    if config.loop.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.loop.activation_checkpointing != "none":
        every = config.loop.activation_checkpointing
        recompute(blocks_to_recompute(model, config), 1 if every == "full" else every)
    return device, data, model


def blocks_to_recompute(model: nn.Module, config: Config) -> list[nn.Module]:
    blocks = blocks_of(model)
    if not blocks:
        raise ConfigError(
            f"loop.activation_checkpointing={config.loop.activation_checkpointing} finds no blocks that recur "
            f"in model={config.model['name']}: leave it at none"
        )
    return blocks


def pick_device(name: str, ranks: Ranks) -> torch.device:
    """The device of that name; ``auto`` takes an accelerator where there is one.

    Each rank of a node has a GPU of its own, whether the launcher shows it that one alone or all of the node.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise ConfigError(f"device={name} is not available on this machine: it has {there}")
    if name == "mps" and ranks.world_size > 1:
        raise ConfigError("device=mps trains on one rank only: use device=cpu or parallel=none")
    if name == "cuda" and ranks.store:
        visible = torch.cuda.device_count()
        index = 0 if visible == 1 else ranks.local_rank
        if index >= visible:
            raise ConfigError(
                f"no GPU is left for local rank {ranks.local_rank}: this node shows {visible}, start fewer ranks"
            )
        return torch.device("cuda", index)
    return torch.device(name)


def check_ranks(config: Config, ranks: Ranks) -> None:
    name = config.parallel["name"]
    if name == "none" and ranks.world_size > 1:
        raise ConfigError(f"{ranks.world_size} ranks were started: choose parallel=ddp, fsdp or hsdp")
    if name != "none" and not ranks.store:
        raise ConfigError(
            f"parallel={name} needs more than one rank: start it with torchrun --nproc-per-node N -m trainer "
            f"or srun, or use parallel=none"
        )
    if name in ("fsdp", "hsdp") and config.loop.channels_last:
        raise ConfigError(
            f"loop.channels_last=true does not go with parallel={name}, which cuts up weights in rows"
        )


def objective_of(config: Config) -> str:
    return MODELS.get(config.model["name"]).tags.get("objective", "classification")


def build_model(config: Config, data: Data) -> nn.Module:
    """The model, with the options that the user left open filled in from the data.

    Raises:
        ConfigError: the model reads something else than the data gives, or has another number of classes.
    """
    name = config.model["name"]
    kind = "tokens" if objective_of(config) == "language" else "images"
    if kind != data.kind:
        raise ConfigError(
            f"model={name} reads {kind}, but data={config.data['name']} gives {data.kind}: "
            f"choose another model or another data"
        )
    options = dict(config.model)
    for fact, value in data.facts.items():
        if fact not in options:
            continue
        if options[fact] is None:
            options[fact] = value
        elif fact in ("num_classes", "vocab_size", "in_channels") and not fits(fact, options[fact], value):
            raise ConfigError(
                f"model.{fact}={options[fact]} does not fit data={config.data['name']}, which has {value}: "
                f"leave it null"
            )
    return MODELS.build(options)


@torch.no_grad()
def initialize_lazy_layers(model: nn.Module, data: Data) -> None:
    """Shows a sample to a model with layers such as ``nn.LazyLinear``, which learn their shapes from it."""
    if any(is_lazy(parameter) for parameter in model.parameters()):
        model.eval()(data.train.batch(torch.arange(1), None)[0].cpu())


def fits(fact: str, option: int, value: int) -> bool:
    """More classes or tokens than the data has do no harm; channels must be the same."""
    return option == value if fact == "in_channels" else option >= value


def budget_of(config: Config, batches_per_epoch: int) -> Budget:
    loop = config.loop
    if loop.max_time is not None:
        return Budget(None, loop.max_time)
    steps = loop.max_steps or (loop.max_epochs or DEFAULT_EPOCHS) * batches_per_epoch
    if config.schedule["warmup"] >= max(steps, 1):
        raise ConfigError(
            f"schedule.warmup={config.schedule['warmup']:g} is longer than the run's {steps} steps"
        )
    return Budget(steps, None)


def describe(trainer: Trainer, directory: Path, resumed_step: int) -> RunInfo:
    """What the monitors may know of a run before its first step."""
    config = trainer.config
    count = sum(p.numel() for p in trainer.model.parameters())
    return RunInfo(
        directory=directory,
        name=config.name,
        config=plain(config),
        summary=f"{config.model['name']} ({count:,} parameters) on {config.data['name']} "
        f"({len(trainer.data.train):,} samples) with {config.optimizer['name']}, "
        f"{trainer.device.type}, {config.precision.name}",
        total_steps=trainer.budget.steps,
        total_seconds=trainer.budget.seconds,
        steps_per_epoch=trainer.state.loader.batches_per_epoch,
        primary=trainer.primary,
        resumed_step=resumed_step,
    )


def run(config: Config, directory: RunDirectory, overrides: list[str], ranks: Ranks = ALONE) -> Result:
    """Trains in a run directory.

    Raises:
        UserError: the config cannot be run; nothing was written then.
    """
    found, status, own = ranks.from_first(lambda: look_into(config, directory.path))
    if status.get("state") == "finished" and found == own:
        if ranks.first:
            print(f"finished already at step {status.get('step')}: {directory.path}")
        return Result(FINISHED, status["metrics"], status["primary"])
    with StopFlag() as stop:
        return _run(config, directory, overrides, found, stop, ranks)


def look_into(config: Config, directory: Path) -> tuple[list[Path], dict[str, Any], list[Path]]:
    """What a run directory holds: checkpoints to go on from, the status, the checkpoints of its own."""
    return resumable(config, directory), read_status(directory), checkpoint.whole(directory / "checkpoints")


def resumable(config: Config, directory: Path) -> list[Path]:
    """The checkpoints that the run goes on from, best first; none for a new run.

    A run that started from another's checkpoint and was stopped goes on from its own.
    """
    resume = config.checkpoint.resume
    own = checkpoint.whole(directory / "checkpoints")
    if own and resume == "none":
        raise ConfigError(
            f"checkpoint.resume=none would overwrite the run in {directory}: "
            f"choose another hydra.run.dir, or checkpoint.resume=auto to go on with it"
        )
    if own or resume in ("auto", "none"):
        return own
    return checkpoint.candidates(Path(resume))


def _run(
    config: Config,
    directory: RunDirectory,
    overrides: list[str],
    found: list[Path],
    stop: StopFlag,
    ranks: Ranks,
) -> Result:
    trainer = build(config, ranks)
    same_run = bool(found) and found[0].absolute().parent.parent == directory.path
    restored = checkpoint.restore(found, trainer.state, same_run=same_run, ranks=ranks) if found else None

    if ranks.first:
        directory.write_description(plain(config), overrides)
    info = describe(trainer, directory.path, trainer.counters.step if same_run else 0)
    monitors = Monitors(
        info, config.monitor if ranks.first else dataclasses.replace(config.monitor, sinks=[])
    )
    if config.profile and ranks.first:
        profile = Profile(info, config.monitor.profile_steps, monitors)
        monitors.sinks = {"profile": profile, **monitors.sinks}
    if restored is not None:
        if same_run:
            monitors.load_state_dict(restored.monitors)
        for warning in restored.warnings:
            monitors.message(warning, "warning")
        monitors.message(f"going on from {restored.checkpoint}")
    return Result(fit(trainer, directory, monitors, stop), trainer.counters.evaluated, trainer.primary)


def fit(trainer: Trainer, directory: RunDirectory, monitors: Monitors, stop: StopFlag) -> int:
    """Trains to the end, however it comes, and writes down how it came; returns the exit code."""
    counters, ranks = trainer.counters, trainer.ranks
    if ranks.first:
        monitors.sinks["status"] = StatusSink(directory, counters.step, counters.evaluated, trainer.primary)

    def write_end(status: Status, error: str | None = None) -> None:
        ending = {"metrics": counters.evaluated, "primary": trainer.primary, "error": error}
        write_status(directory.path, status, step=counters.step, **ending)

    def end(status: Status, error: str | None = None) -> None:
        if ranks.first:
            write_end(status, error)
        monitors.finish(status, counters.evaluated)

    def end_with_another(cause: str) -> None:
        write_end("failed", cause)
        directory.log(cause)
        print(f"crashed: {cause}", file=sys.stderr)

    ranks.on_failure_of_another(end_with_another)
    try:
        trainer.fit(directory.path / "checkpoints", monitors, stop)
    except Stopped as stopped:
        monitors.message(f"{stopped}; go on with: {again(directory.path)}", "warning")
        end("preempted", str(stopped))
        return PREEMPTED
    except TrainingFailed as error:  # on all ranks alike
        monitors.message(str(error), "error")
        end("failed", str(error))
        if ranks.first:
            print(f"error: {error}", file=sys.stderr)
        return CRASHED
    except BaseException as error:
        cause = ranks.fail(error_line(error))
        monitors.message(cause, "error")
        end("failed", cause)
        if not isinstance(error, Exception):  # KeyboardInterrupt, SystemExit
            raise
        where = f"rank {ranks.rank}: " if ranks.world_size > 1 else ""
        if isinstance(error, UserError):
            print(f"error: {where}{error_line(error)}", file=sys.stderr)
        else:
            directory.log(f"{where}{traceback.format_exc()}")
            seen = f"(traceback in {directory.path / 'run.log'})"
            print(f"crashed: {where}{error_line(error)} {seen}", file=sys.stderr)
        return CRASHED
    end("finished")
    return FINISHED


def error_line(error: BaseException) -> str:
    text = one_line(error)
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
