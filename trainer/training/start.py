"""Where a run starts: from nothing, from its own newest checkpoint, or from the weights of another run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.checkpoint import storage
from trainer.checkpoint.manifest import MANIFEST
from trainer.checkpoint.restore import restore
from trainer.checkpoint.weights import WEIGHTS, load_weights
from trainer.config.schema import Config
from trainer.config.stored import budget_changes, differences, optimizer_differences
from trainer.data.base import digest
from trainer.errors import CheckpointError, ConfigError, UserError
from trainer.monitor.base import Level
from trainer.objectives import OBJECTIVES
from trainer.rundir.files import CONFIG, METRICS
from trainer.rundir.frozen_config import read_frozen
from trainer.rundir.status import read_status
from trainer.training.parts import RunParts

RESUME = "checkpoint.resume="

OBJECTIVE = "objective."
"""Begins, in the fingerprint of what a run is trained on, the names of options that lead to a teacher's checkpoint."""


@dataclass(frozen=True)
class Found:
    """What a run directory holds, and what the config wants of it."""

    checkpoints: list[str]
    """From which it starts, the one that is tried first first; none: from nothing, or from weights alone."""
    is_own: bool
    """Whether they are the run's own."""
    status: dict[str, Any]
    budget_changes: list[str]
    """Of a run whose config is stored, how its budget is another now."""

    @property
    def is_finished(self) -> bool:
        """Whether the run has reached the end of its budget before."""
        return self.status.get("state") == "finished"


@dataclass(frozen=True)
class Started:
    """How the parts of a run were given the state that they start with."""

    step: int | None
    """Of its own checkpoint, from which it goes on; None for a new run."""
    monitors: Mapping[str, Any] = field(default_factory=dict)
    """The state of its monitors."""
    messages: list[tuple[str, Level]] = field(default_factory=list)


def inspect_directory(config: Config, directory: Path) -> dict[str, Any]:
    """What a run directory holds: the fields of `Found`, as the first rank sees them.

    Raises:
        UserError: it holds the run of another config, cannot be resumed, or its files have another format.
    """
    status = read_status(directory)
    if status.get("state") == "unknown":
        raise UserError(status["error"])
    resume, folder = config.checkpoint.resume, directory / "checkpoints"
    storage.recover(folder)
    own = storage.list_checkpoints(folder)
    if own and resume == "none":
        raise ConfigError(
            f"checkpoint.resume=none would overwrite the run in {directory}: "
            f"choose another hydra.run.dir, or checkpoint.resume=auto to go on with it"
        )
    if (own or has_records(directory)) and not (directory / CONFIG).exists():
        raise ConfigError(
            f"{directory} holds a run without its {CONFIG}, so that nothing tells whether it is this one: "
            f"restore it, or choose another hydra.run.dir"
        )
    changes = compare_with_stored(config, directory)
    if not own and not (status.get("state") == "finished" and not changes):
        refuse_lost(directory, status)
    found = own
    if not own and resume not in ("auto", "none"):
        found = storage.find_checkpoints(Path(resume), RESUME)
        check_optimizer(config, found[0])
    return {
        "checkpoints": [str(checkpoint) for checkpoint in found],
        "is_own": bool(own),
        "status": status,
        "budget_changes": changes,
    }


def compare_with_stored(config: Config, directory: Path) -> list[str]:
    """How the budget differs from that of the run in the directory; nothing if there is none.

    Raises:
        ConfigError: something else differs, on which depends what is learnt.
        DataError: the stored config cannot be read.
    """
    if not (directory / CONFIG).exists():
        return []
    stored = read_frozen(directory / CONFIG)
    if found := differences(stored, config):
        raise ConfigError(
            f"{directory} is the run of another config: {'; '.join(found)}: choose another hydra.run.dir"
        )
    return budget_changes(stored, config)


def refuse_lost(directory: Path, status: Mapping[str, Any]) -> None:
    """Refuses to start anew where a run has been whose checkpoints are lost: it would remove the records, too.

    Raises:
        CheckpointError: there was such a run.
    """
    if storage.list_damaged(directory / "checkpoints"):
        lost = "are damaged"
    elif status.get("saved") is not None:
        lost = "are gone"
    elif "state" not in status and has_records(directory):
        lost = "and its status are gone"
    else:
        return
    reached = f", which had reached step {status['step']}," if "step" in status else ""
    raise CheckpointError(
        f"the checkpoints of the run in {directory}{reached} {lost}: choose another hydra.run.dir to start anew"
    )


def has_records(directory: Path) -> bool:
    """Whether a run has written metrics; its status is written before them."""
    file = directory / METRICS
    return file.is_file() and file.stat().st_size > 0


def check_optimizer(config: Config, checkpoint: Path) -> None:
    """Checks that the optimizer can take over what that of another run has kept.

    Raises:
        ConfigError: it is another optimizer or rule, or the checkpoint does not lie in a run directory.
    """
    path = config.checkpoint.resume
    file = checkpoint.absolute().parent.parent / CONFIG
    if not file.is_file():
        raise ConfigError(
            f"{RESUME}{path} is not in a run directory, whose config would say what its optimizer is: "
            f"{WEIGHTS}{path} takes its weights alone"
        )
    if found := optimizer_differences(read_frozen(file), config):
        raise ConfigError(
            f"{RESUME}{path} is of another optimizer: {'; '.join(found)}: {WEIGHTS}{path} takes its weights alone"
        )


def start(parts: RunParts, found: Found) -> Started:
    """Gives the parts of a run the state that they start with.

    Raises:
        UserError: what is found does not fit the run.
        MachineError: it cannot be read.
    """
    options, ranks = parts.config.checkpoint, parts.ranks
    teachers = ranks.run_on_rank0(lambda: teachers_of(parts.config))
    parts.state.data = {**parts.data.fingerprint, **teachers}
    if not found.checkpoints and options.weights is None:
        reached = found.status.get("step")
        again = f"the run had reached step {reached} and no checkpoint: it starts again"
        return Started(None, messages=[(again, "warning")] if reached else [])
    if not found.checkpoints:
        path, strict = str(options.weights), options.weights_strict
        warnings = ranks.run_on_all(lambda: load_weights(WEIGHTS, path, parts.model, strict=strict))
        parts.state.start_average()
        said: list[tuple[str, Level]] = [(warning, "warning") for warning in warnings]
        return Started(None, messages=[*said, (f"starts with the weights of {path}", "info")])
    restored = restore(
        list(map(Path, found.checkpoints)),
        parts.state,
        same_run=found.is_own,
        keep_best=options.keep_best,
        ranks=ranks,
    )
    messages: list[tuple[str, Level]] = [(warning, "warning") for warning in restored.warnings]
    if not found.is_own:
        what = "the weights and the optimizer's state; options, budget and the order of the data are its own"
        return Started(None, messages=[*messages, (f"starts from {restored.checkpoint}: {what}", "info")])
    check_data(parts, restored.data)
    check_teachers(parts.config, teachers, restored.data)
    messages.append((f"going on from {restored.checkpoint}", "info"))
    if found.budget_changes:
        messages.append((describe_budget(parts, found.budget_changes), "warning"))
    return Started(parts.counters.step, restored.monitors, messages)


def check_data(parts: RunParts, before: Mapping[str, str]) -> None:
    """Checks that a run goes on with the data that it was trained on.

    Raises:
        ConfigError: they are others.
    """
    now = parts.data.fingerprint
    changed = [
        f"{what}: {before.get(what, 'none')} there, {now.get(what, 'none')} here"
        for what in sorted(before.keys() | now.keys())
        if before.get(what) != now.get(what) and not what.startswith(OBJECTIVE)
    ]
    if changed and not parts.config.checkpoint.accept_changed_data:
        raise ConfigError(
            f"the data are not those that the run was trained on: {'; '.join(changed)}: "
            f"checkpoint.accept_changed_data=true goes on with them"
        )


def teachers_of(config: Config) -> dict[str, str]:
    """By option, the checkpoints of other runs that the objective learns from: name and checksum of each.

    Raises:
        CheckpointError: there is none.
    """
    found = {}
    for name in OBJECTIVES.get(config.objective["name"]).tags.get("runs", ()):
        checkpoint = storage.find_checkpoints(Path(config.objective[name]), f"{OBJECTIVE}{name}=")[0]
        found[f"{OBJECTIVE}{name}"] = f"{checkpoint.name} {digest((checkpoint / MANIFEST).read_bytes())}"
    return found


def check_teachers(config: Config, teachers: Mapping[str, str], before: Mapping[str, str]) -> None:
    """Checks that a run goes on with the teachers that it has had; an older checkpoint does not know them.

    Raises:
        ConfigError: one is another checkpoint.
    """
    for option, now in teachers.items():
        then = before.get(option, now)
        if then != now and not config.checkpoint.accept_changed_data:
            path = config.objective[option.removeprefix(OBJECTIVE)]
            step = then.partition(" ")[0]
            raise ConfigError(
                f"{option}={path} is {now} now, but the run has learnt from {then}: "
                f"name that one, {option}={storage.find_checkpoints(Path(path))[0].with_name(step)}, "
                f"or checkpoint.accept_changed_data=true goes on with the other"
            )


def describe_budget(parts: RunParts, changes: list[str]) -> str:
    """What another budget does to the learning rate of a run that goes on, which is set to it."""
    group = parts.optimizer.param_groups[0]
    before = float(group["lr"])
    parts.state.schedule.update(parts.progress().fraction, parts.counters.step)
    return (
        f"{', '.join(changes)}: schedule={parts.config.schedule['name']} follows the new budget from step "
        f"{parts.counters.step} on, where the learning rate goes from {before:.3g} to {float(group['lr']):.3g}"
    )
