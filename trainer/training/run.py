"""One run in its directory, from its first step or its last checkpoint to its end, however it comes."""

import dataclasses
import sys
import traceback
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint import storage
from trainer.config.schema import Config
from trainer.distributed.ranks import SINGLE_PROCESS, Ranks
from trainer.errors import ConfigError, UserError, one_line
from trainer.monitor import Monitors, Profile, RunInfo, Status
from trainer.monitor.status_file import StatusSink
from trainer.options import to_dict
from trainer.rundir.directory import RunDirectory
from trainer.rundir.frozen_config import again
from trainer.rundir.status import CRASHED, FINISHED, PREEMPTED, read_status, write_status
from trainer.signals import Preempted, StopSignal
from trainer.training.build import build
from trainer.training.loop import Trainer, TrainingFailed


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    code: int
    metrics: dict[str, float]
    """Of the last evaluation."""
    primary: str
    """The name of the metric that picks the best."""


def describe(trainer: Trainer, directory: Path, resumed_step: int) -> RunInfo:
    """What the monitors may know of a run before its first step."""
    config = trainer.config
    count = sum(p.numel() for p in trainer.model.parameters())
    return RunInfo(
        directory=directory,
        name=config.name,
        config=to_dict(config),
        summary=f"{config.model['name']} ({count:,} parameters) on {config.data['name']} "
        f"({len(trainer.data.train):,} samples) with {config.optimizer['name']}, "
        f"{trainer.device.type}, {config.precision.name}",
        total_steps=trainer.budget.steps,
        total_seconds=trainer.budget.seconds,
        steps_per_epoch=trainer.state.loader.batches_per_epoch,
        primary=trainer.primary,
        resumed_step=resumed_step,
    )


def run(
    config: Config, directory: RunDirectory, overrides: list[str], ranks: Ranks = SINGLE_PROCESS
) -> Result:
    """Trains in a run directory.

    Raises:
        UserError: the config cannot be run; nothing was written then.
    """
    found, status, own = ranks.run_on_rank0(lambda: look_into(config, directory.path))
    if status.get("state") == "finished" and found == own:
        if ranks.is_rank0:
            print(f"finished already at step {status.get('step')}: {directory.path}")
        return Result(FINISHED, status["metrics"], status["primary"])
    with StopSignal() as stop:
        return _run(config, directory, overrides, found, stop, ranks)


def look_into(config: Config, directory: Path) -> tuple[list[Path], dict[str, Any], list[Path]]:
    """What a run directory holds: checkpoints to go on from, the status, the checkpoints of its own."""
    return (
        resumable(config, directory),
        read_status(directory),
        storage.list_checkpoints(directory / "checkpoints"),
    )


def resumable(config: Config, directory: Path) -> list[Path]:
    """The checkpoints that the run goes on from, best first; none for a new run.

    A run that started from another's checkpoint and was stopped goes on from its own.
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
    return storage.candidates(Path(resume))


def _run(
    config: Config,
    directory: RunDirectory,
    overrides: list[str],
    found: list[Path],
    stop: StopSignal,
    ranks: Ranks,
) -> Result:
    trainer = build(config, ranks)
    same_run = bool(found) and found[0].absolute().parent.parent == directory.path
    restored = storage.restore(found, trainer.state, same_run=same_run, ranks=ranks) if found else None

    if ranks.is_rank0:
        directory.write_description(to_dict(config), overrides)
    info = describe(trainer, directory.path, trainer.counters.step if same_run else 0)
    monitors = Monitors(
        info, config.monitor if ranks.is_rank0 else dataclasses.replace(config.monitor, sinks=[])
    )
    if config.profile and ranks.is_rank0:
        profile = Profile(info, config.monitor.profile_steps, monitors)
        monitors.sinks = {"profile": profile, **monitors.sinks}
    if restored is not None:
        if same_run:
            monitors.load_state_dict(restored.monitors)
        for warning in restored.warnings:
            monitors.message(warning, "warning")
        monitors.message(f"going on from {restored.checkpoint}")
    return Result(fit(trainer, directory, monitors, stop), trainer.counters.evaluated, trainer.primary)


def fit(trainer: Trainer, directory: RunDirectory, monitors: Monitors, stop: StopSignal) -> int:
    """Trains to the end, however it comes, and writes down how it came; returns the exit code.

    The data workers end with the run, not with the process, which may wait for them before it ends them.
    """
    counters, ranks = trainer.counters, trainer.ranks
    if ranks.is_rank0:
        monitors.sinks["status"] = StatusSink(
            directory.path, counters.step, counters.evaluated, trainer.primary
        )

    def write_end(status: Status, error: str | None = None) -> None:
        ending = {"metrics": counters.evaluated, "primary": trainer.primary, "error": error}
        write_status(directory.path, status, step=counters.step, **ending)

    def end(status: Status, error: str | None = None) -> None:
        if ranks.is_rank0:
            write_end(status, error)
        monitors.finish(status, counters.evaluated)

    def end_with_another(cause: str) -> None:
        write_end("failed", cause)
        directory.log(cause)
        print(f"crashed: {cause}", file=sys.stderr)

    ranks.on_peer_failure(end_with_another)
    try:
        with closing(trainer.state.loader):
            trainer.fit(directory.path / "checkpoints", monitors, stop)
    except Preempted as stopped:
        monitors.message(f"{stopped}; go on with: {again(directory.path)}", "warning")
        end("preempted", str(stopped))
        return PREEMPTED
    except TrainingFailed as error:  # on all ranks alike
        monitors.message(str(error), "error")
        end("failed", str(error))
        if ranks.is_rank0:
            print(f"error: {error}", file=sys.stderr)
        return CRASHED
    except BaseException as error:
        if isinstance(error, Exception):
            save_last_step(trainer, monitors)
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


def save_last_step(trainer: Trainer, monitors: Monitors) -> None:
    """Saves what a failed run has reached, unless it failed in the middle of a step; a failure of this is a warning.

    One of several ranks does not do it: the others are somewhere else.
    """
    step = trainer.counters.step
    if trainer.mid_step or trainer.ranks.world_size > 1 or step in (0, trainer.saved_step):
        return
    try:
        trainer.save()
        trainer.checkpoints.wait()
        monitors.message(f"step {step} is saved")
    except Exception as error:
        monitors.message(f"step {step} is not saved: {one_line(error)}", "warning")


def error_line(error: BaseException) -> str:
    text = one_line(error)
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
