"""One run in its directory, from its first step or its last checkpoint to its end, however it comes."""

import dataclasses
import math
import traceback
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.manager import CheckpointManager
from trainer.checkpoint.writing import content_of
from trainer.config.schema import Config
from trainer.distributed.failure_detector import print_verdict
from trainer.distributed.ranks import SINGLE_PROCESS, Ranks
from trainer.errors import UserError, WorkerKilled, one_line
from trainer.monitor import Monitors, Profile, RunInfo, Sink, Status
from trainer.monitor.status_file import StatusSink
from trainer.options import to_dict
from trainer.rundir.directory import RunDirectory
from trainer.rundir.frozen_config import again
from trainer.rundir.status import CRASHED, FINISHED, PREEMPTED, StatusFile
from trainer.signals import Preempted, StopSignal
from trainer.streams import print_if_read
from trainer.training.build import build
from trainer.training.loop import Trainer
from trainer.training.memory_profile import MemoryProfile
from trainer.training.micro_batches import settle_accumulate
from trainer.training.nonfinite import TrainingFailed
from trainer.training.parts import RunParts
from trainer.training.start import Found, Started, inspect_directory, start


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
    found = Found(**ranks.run_on_rank0(lambda: inspect_directory(config, directory.path)))
    if found.is_finished and not found.budget_changes:
        return finished_already(found, directory, ranks)
    with StopSignal() as stop:
        parts = build(settle_accumulate(config, directory.path, ranks), ranks)
        started = start(parts, found)
        if found.is_finished and parts.is_finished:
            return finished_already(found, directory, ranks)
        trainer, status = prepare(parts, directory, overrides, started, stop)
        code = fit(trainer, directory, status)
        return Result(code, parts.counters.evaluated, parts.primary)


def finished_already(found: Found, directory: RunDirectory, ranks: Ranks) -> Result:
    """The result of a run that has nothing left to do."""
    if ranks.is_rank0:
        print_if_read(f"finished already at step {found.status.get('step')}: {directory.path}")
    return Result(FINISHED, found.status.get("metrics") or {}, found.status.get("primary") or "")


def prepare(
    parts: RunParts, directory: RunDirectory, overrides: list[str], started: Started, stop: StopSignal
) -> tuple[Trainer, StatusFile]:
    """Describes a run on disk, and opens its monitors and its status.json.

    Args:
        parts: of the run, in the state that they start with.
        directory: of the run.
        overrides: what the user typed.
        started: where that state is from.
        stop: read between two steps.

    Raises:
        UserError: the run's state cannot be saved, or its directory cannot be written.
    """
    ranks, step = parts.ranks, started.step
    # as in checkpoints to come, which no rank may refuse; and none writes before all are built
    ranks.run_on_all(lambda: content_of(parts.state, {}, ranks))
    if ranks.is_rank0:
        config = to_dict(parts.config)
        if parts.config.checkpoint.resume == "none":  # which the next start of this run must not say
            config["checkpoint"]["resume"] = "auto"
        directory.write_description(config, overrides, step or 0)
    status = StatusFile(
        directory.path, parts.primary, parts.counters.step, saved=step, metrics=parts.counters.evaluated
    )
    monitors = ranks.run_on_all(lambda: open_monitors(parts, status, step or 0))
    monitors.load_state_dict(started.monitors)
    for text, level in started.messages:
        monitors.message(text, level)

    def note_saved(step: int) -> None:
        status.note(saved=step)
        if ranks.is_rank0:
            with suppress(OSError):  # the next write says it, too
                status.write("running")

    folder, options = directory.path / "checkpoints", parts.config.checkpoint
    checkpoints = CheckpointManager(folder, ranks, options, saved_step=step, on_saved=note_saved)
    return Trainer(parts, monitors=monitors, checkpoints=checkpoints, stop=stop), status


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


def open_monitors(parts: RunParts, status: StatusFile, resumed_step: int) -> Monitors:
    """The monitors of a run; ranks other than the first have none that write.

    Raises:
        UserError: a file of theirs cannot be written.
    """
    config = parts.config
    info = describe(parts, status.run, resumed_step)
    if not parts.ranks.is_rank0:
        return Monitors(info, dataclasses.replace(config.monitor, sinks=[]))
    extra: dict[str, Sink] = {}
    if config.profile is True:
        extra["profile"] = Profile(info, config.monitor.profile_steps)
    elif config.profile == "memory":
        extra["profile"] = MemoryProfile(info, parts, config.monitor.profile_steps)
    extra["status"] = StatusSink(status)
    try:
        return Monitors(info, config.monitor, extra)
    except OSError as error:
        raise UserError(f"the run directory {status.run} cannot be written: {one_line(error)}") from None


def fit(trainer: Trainer, directory: RunDirectory, status: StatusFile) -> int:
    """Trains to the end, however it comes, and writes down how it came; returns the exit code.

    The data workers end with the run, not with the process, which may wait for them before it ends them.
    """
    parts, counters, ranks, monitors = trainer.parts, trainer.counters, trainer.parts.ranks, trainer.monitors

    def write_state(state: str, error: str | None = None) -> None:
        try:
            status.write(state, step=counters.step, metrics=counters.evaluated, error=error)
        except OSError as error:
            monitors.message(f"status.json cannot be written: {one_line(error)}", "warning")

    def end(state: Status, error: str | None = None) -> None:
        if ranks.is_rank0:
            write_state(state, error)
        monitors.finish(state, counters.evaluated)

    def end_with_peer(cause: str, code: int) -> None:
        write_state("failed", cause)
        with suppress(OSError):
            directory.log(cause)
        print_verdict(cause, code)

    if ranks.is_rank0:
        write_state("running")
    ranks.on_peer_failure(end_with_peer)
    try:
        with closing(parts.state.loader):
            trainer.fit()
    except Preempted as stopped:
        monitors.message(f"{stopped}; go on with: {again(directory.path, parts.config.plugins)}", "warning")
        end("preempted", str(stopped))
        return PREEMPTED
    except TrainingFailed as error:  # on every rank
        finish_writing(trainer)
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
        if isinstance(error, UserError):
            print_if_read(f"error: {cause}", error=True)
        else:
            where = f"rank {ranks.rank}: " if ranks.world_size > 1 else ""
            with suppress(OSError):
                directory.log(f"{where}{traceback.format_exc()}")
            seen = f"(traceback in {directory.path / 'run.log'})"
            print_if_read(f"crashed: {cause} {seen}", error=True)
        return PREEMPTED if killed else CRASHED
    no_number = math.isnan(counters.evaluated[parts.primary])
    end("finished", f"{parts.primary} at the end is not a number" if no_number else None)
    return FINISHED


def save_last_step(trainer: Trainer) -> None:
    """Saves what a failed run has reached; a failure of this is a warning.

    In the middle of a step it waits for the last checkpoint instead. One of several ranks does neither: the others are
    somewhere else.
    """
    step = trainer.counters.step
    if trainer.parts.ranks.world_size > 1:
        return
    if step == 0 or trainer.train_step.is_under_way:
        finish_writing(trainer)
        return
    try:
        trainer.save()
        trainer.checkpoints.wait()
        trainer.monitors.message(f"step {step} is saved")
    except Exception as error:
        trainer.monitors.message(f"step {step} is not saved: {one_line(error)}", "warning")


def finish_writing(trainer: Trainer) -> None:
    """Waits for the checkpoint that is being written in the background; that it cannot be is a warning."""
    try:
        trainer.checkpoints.wait()
    except Exception as error:
        trainer.monitors.message(one_line(error), "warning")


def error_line(error: BaseException) -> str:
    """An error on one line, with its type unless it is a user's mistake."""
    text = one_line(error)
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
