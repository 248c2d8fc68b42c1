"""One run in its directory, from its first step or its last checkpoint to its end, however it comes."""

import dataclasses
import math
import traceback
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint import storage
from trainer.checkpoint.manager import CheckpointManager
from trainer.checkpoint.restore import restore
from trainer.config.schema import Config
from trainer.distributed.ranks import SINGLE_PROCESS, Ranks
from trainer.errors import ConfigError, UserError, WorkerKilled, one_line
from trainer.monitor import Monitors, Profile, RunInfo, Sink, Status
from trainer.monitor.status_file import StatusSink
from trainer.options import to_dict
from trainer.rundir.directory import RunDirectory
from trainer.rundir.frozen_config import again
from trainer.rundir.status import CRASHED, FINISHED, PREEMPTED, read_status, write_status
from trainer.signals import Preempted, StopSignal
from trainer.streams import print_if_read
from trainer.training.build import build
from trainer.training.loop import Trainer
from trainer.training.nonfinite import TrainingFailed
from trainer.training.parts import RunParts


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    code: int
    """The exit code."""
    metrics: dict[str, float]
    """Of the last evaluation."""
    primary: str
    """The name of the metric that picks the best."""


def run(
    config: Config, directory: RunDirectory, overrides: list[str], ranks: Ranks = SINGLE_PROCESS
) -> Result:
    """Trains in a run directory, from its newest checkpoint if it has one.

    Args:
        config: of the run.
        directory: which this process, or the first rank, has locked.
        overrides: what the user typed, to be written down.
        ranks: every one of them calls this.

    Raises:
        UserError: the config cannot be run; nothing was written then.
    """
    found, status, own = ranks.run_on_rank0(lambda: inspect_directory(config, directory.path))
    if status.get("state") == "finished" and found == own:
        if ranks.is_rank0:
            print_if_read(f"finished already at step {status.get('step')}: {directory.path}")
        return Result(FINISHED, status.get("metrics", {}), status.get("primary", ""))
    with StopSignal() as stop:
        parts = build(config, ranks)
        trainer = prepare(parts, directory, overrides, found, stop)
        code = fit(trainer, directory)
        return Result(code, parts.counters.evaluated, parts.primary)


def inspect_directory(config: Config, directory: Path) -> tuple[list[Path], dict[str, Any], list[Path]]:
    """What a run directory holds: checkpoints to resume from, the status, the checkpoints of its own.

    Raises:
        UserError: the run cannot be resumed, as the config wants it, or its files have another format.
    """
    status = read_status(directory)
    if status.get("state") == "unknown":
        raise UserError(status["error"])
    return resumable(config, directory), status, storage.list_checkpoints(directory / "checkpoints")


def resumable(config: Config, directory: Path) -> list[Path]:
    """The checkpoints to resume from, best first; none for a new run.

    A run that started from another's checkpoint and was stopped resumes from its own.

    Raises:
        UserError: ``checkpoint.resume`` leads nowhere, or would overwrite a run.
    """
    resume = config.checkpoint.resume
    own = storage.list_checkpoints(directory / "checkpoints")
    if own and resume == "none":
        raise ConfigError(
            f"checkpoint.resume=none would overwrite the run in {directory}: "
            f"choose another hydra.run.dir, or checkpoint.resume=auto to go on with it"
        )
    if own or resume in ("auto", "none"):
        return own
    return storage.find_checkpoints(Path(resume), "checkpoint.resume=")


def prepare(
    parts: RunParts, directory: RunDirectory, overrides: list[str], found: list[Path], stop: StopSignal
) -> Trainer:
    """Restores the run from the first checkpoint that can be read, opens its monitors, describes it on disk.

    Args:
        parts: of the run, as built.
        directory: of the run.
        overrides: what the user typed.
        found: the checkpoints to resume from; none for a new run.
        stop: read between two steps.

    Raises:
        UserError: a checkpoint does not fit the run; nothing was written then.
    """
    ranks = parts.ranks
    same_run = bool(found) and found[0].absolute().parent.parent == directory.path
    restored = restore(found, parts.state, same_run=same_run, ranks=ranks) if found else None
    resumed_step = parts.counters.step if same_run else None

    if ranks.is_rank0:
        directory.write_description(to_dict(parts.config), overrides)
    monitors = ranks.run_on_all(lambda: open_monitors(parts, directory.path, resumed_step or 0))
    if restored is not None:
        if same_run:
            monitors.load_state_dict(restored.monitors)
        for warning in restored.warnings:
            monitors.message(warning, "warning")
        monitors.message(f"going on from {restored.checkpoint}")
    checkpoints = CheckpointManager(
        directory.path / "checkpoints", ranks, parts.config.checkpoint, saved_step=resumed_step
    )
    return Trainer(parts, monitors=monitors, checkpoints=checkpoints, stop=stop)


def describe(parts: RunParts, directory: Path, resumed_step: int) -> RunInfo:
    """What the monitors may know of a run before its first step.

    Args:
        parts: of the run.
        directory: of the run.
        resumed_step: the step of its own checkpoint that it resumes from; 0 for a new run.
    """
    config = parts.config
    count = sum(p.numel() for p in parts.model.parameters())
    return RunInfo(
        directory=directory,
        name=config.name,
        config=to_dict(config),
        summary=f"{config.model['name']} ({count:,} parameters) on {config.data['name']} "
        f"({len(parts.data.train):,} samples) with {config.optimizer['name']}, "
        f"{parts.device.type}, {config.precision.name}",
        total_steps=parts.budget.steps,
        total_seconds=parts.budget.seconds,
        steps_per_epoch=parts.state.loader.batches_per_epoch,
        primary=parts.primary,
        resumed_step=resumed_step,
    )


def open_monitors(parts: RunParts, directory: Path, resumed_step: int) -> Monitors:
    """The monitors of a run; ranks other than the first have none that write.

    Raises:
        UserError: the files of a sink cannot be opened.
    """
    config = parts.config
    info = describe(parts, directory, resumed_step)
    if not parts.ranks.is_rank0:
        return Monitors(info, dataclasses.replace(config.monitor, sinks=[]))
    extra: dict[str, Sink] = {}
    if config.profile:
        extra["profile"] = Profile(info, config.monitor.profile_steps)
    extra["status"] = StatusSink(directory, parts.counters.evaluated, parts.primary)
    return Monitors(info, config.monitor, extra)


def fit(trainer: Trainer, directory: RunDirectory) -> int:
    """Trains to the end, however it comes, and writes down how it came; returns the exit code.

    The data workers end with the run, not with the process, which may wait for them before it ends them.
    """
    parts, counters, ranks, monitors = trainer.parts, trainer.counters, trainer.parts.ranks, trainer.monitors

    def write_state(state: str, error: str | None = None) -> None:
        fields = {"metrics": counters.evaluated, "primary": parts.primary, "error": error}
        try:
            write_status(directory.path, state, step=counters.step, **fields)
        except OSError as error:
            monitors.message(f"status.json cannot be written: {one_line(error)}", "warning")

    def end(status: Status, error: str | None = None) -> None:
        if ranks.is_rank0:
            write_state(status, error)
        monitors.finish(status, counters.evaluated)

    def end_with_peer(cause: str) -> None:
        write_state("failed", cause)
        with suppress(OSError):
            directory.log(cause)
        print_if_read(f"crashed: {cause}", error=True)

    if ranks.is_rank0:
        write_state("running")
    ranks.on_peer_failure(end_with_peer)
    try:
        with closing(parts.state.loader):
            trainer.fit()
    except Preempted as stopped:
        monitors.message(f"{stopped}; go on with: {again(directory.path)}", "warning")
        end("preempted", str(stopped))
        return PREEMPTED
    except TrainingFailed as error:  # on every rank
        monitors.message(str(error), "error")
        end("failed", str(error))
        if ranks.is_rank0:
            print_if_read(f"error: {error}", error=True)
        return CRASHED
    except BaseException as error:
        if isinstance(error, Exception):
            save_last_step(trainer)
        cause = ranks.fail(error_line(error))
        monitors.message(cause, "error")
        killed = isinstance(error, WorkerKilled)
        end("preempted" if killed else "failed", cause)
        if not isinstance(error, Exception):  # KeyboardInterrupt, SystemExit
            raise
        where = f"rank {ranks.rank}: " if ranks.world_size > 1 else ""
        if isinstance(error, UserError):
            print_if_read(f"error: {where}{error_line(error)}", error=True)
        else:
            with suppress(OSError):
                directory.log(f"{where}{traceback.format_exc()}")
            seen = f"(traceback in {directory.path / 'run.log'})"
            print_if_read(f"crashed: {where}{error_line(error)} {seen}", error=True)
        return PREEMPTED if killed else CRASHED
    no_number = math.isnan(counters.evaluated[parts.primary])
    end("finished", f"{parts.primary} at the end is not a number" if no_number else None)
    return FINISHED


def save_last_step(trainer: Trainer) -> None:
    """Saves what a failed run has reached, unless it failed in the middle of a step; a failure of this is a warning.

    One of several ranks does not do it: the others are somewhere else.
    """
    step = trainer.counters.step
    if step == 0 or trainer.train_step.is_under_way or trainer.parts.ranks.world_size > 1:
        return
    try:
        trainer.save()
        trainer.checkpoints.wait()
        trainer.monitors.message(f"step {step} is saved")
    except Exception as error:
        trainer.monitors.message(f"step {step} is not saved: {one_line(error)}", "warning")


def error_line(error: BaseException) -> str:
    """An error on one line, with its type unless it is a user's mistake."""
    text = one_line(error)
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
