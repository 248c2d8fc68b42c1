"""The options that a set of runs has swept, found in their configs, and the groups that they form."""

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.errors import ConfigError, nearest
from trainer.report.read_runs import RecordedRun

NEVER_SWEPT = ("name", "hydra.run.dir", "hydra.output_subdir", "checkpoint.resume")
"""Options that differ between the runs of a sweep without having been swept."""

TASK = ("model.name", "model.arch", "data.name", "data.path", "objective.name")
"""Options that say what learns what: groups that differ in one of them do not compete."""


@dataclass(frozen=True)
class Group:
    """Runs with the same values of the options by which they are grouped."""

    label: str
    values: dict[str, Any]
    """The values of those options."""
    runs: list[RecordedRun]
    counted: dict[Hashable, RecordedRun]
    """Finished runs by the other swept options, the seed among them; of several with the same ones, the newest."""

    @property
    def task(self) -> str:
        """What its runs learn, as far as the groups differ in it: such as ``cnn fashion_mnist``."""
        return label({key: value for key, value in self.values.items() if key in TASK})

    @property
    def repeated(self) -> int:
        """The number of finished runs that do not count, since a newer one has the same config."""
        return sum(run.state == "finished" for run in self.runs) - len(self.counted)


def swept_keys(runs: Sequence[RecordedRun]) -> list[str]:
    """The options that differ between runs, the seed among them.

    A component's own options, such as optimizer.lr, depend on its name; they count as swept only if they differ
    between runs with the same component.
    """
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in NEVER_SWEPT)
    return [key for key in keys if any(_differs(key, same) for same in _by_component(key, runs))]


def _by_component(key: str, runs: Sequence[RecordedRun]) -> Iterable[list[RecordedRun]]:
    component = f"{key.rpartition('.')[0]}.name"
    if key == component:
        return [list(runs)]
    return partition(runs, [component]).values()


def _differs(key: str, runs: Sequence[RecordedRun]) -> bool:
    return len(partition(runs, [key])) > 1


def partition(runs: Iterable[RecordedRun], keys: Sequence[str]) -> dict[Hashable, list[RecordedRun]]:
    """The runs by their values of these options, in order of appearance."""
    groups: dict[Hashable, list[RecordedRun]] = {}
    for run in runs:
        groups.setdefault(values_of(run, keys), []).append(run)
    return groups


def values_of(run: RecordedRun, keys: Iterable[str]) -> tuple[str, ...]:
    """A run's values of these options as a dictionary key, also where they are lists."""
    return tuple(json.dumps(run.config.get(key)) for key in keys)


def group_keys(by: str | None, runs: Sequence[RecordedRun]) -> list[str]:
    """The options to group by: those of a comma-separated list, or all swept ones but the seed.

    A group's name, as in ``optimizer``, stands for which of its components was chosen.

    Raises:
        ConfigError: no run has such an option.
    """
    swept = swept_keys(runs)
    if by is None:
        keys = sorted(swept, key=lambda key: not key.endswith(".name"))  # components before their options
        return [key for key in keys if key != "seed"] or ["optimizer.name"]
    known = {key for run in runs for key in run.config}
    keys = []
    for name in by.split(","):
        key = f"{name}.name" if f"{name}.name" in known else name
        if key not in known:
            groups = [key.removesuffix(".name") for key in known if key.endswith(".name")]
            raise ConfigError(f"no run has an option {name}, given by --by{nearest(name, {*swept, *groups})}")
        keys.append(key)
    return keys


def group(runs: Sequence[RecordedRun], keys: Sequence[str]) -> list[Group]:
    """The runs grouped by their values of these options."""
    parts = partition(runs, keys).values()
    rest = _pairing_keys(parts, keys)
    groups = []
    for members in parts:
        finished = sorted(
            (run for run in members if run.state == "finished"), key=lambda run: run.updated or 0
        )
        values = {key: members[0].config.get(key) for key in keys}
        counted: dict[Hashable, RecordedRun] = {values_of(run, rest): run for run in finished}
        groups.append(Group(group_label(members[0], keys), values, members, counted))
    return groups


def _pairing_keys(parts: Iterable[Sequence[RecordedRun]], keys: Sequence[str]) -> list[str]:
    """The options by which runs of two groups are a pair: the seed, and where it does not tell the runs of a group
    apart, as none of a comparison's jobs with their own budgets, all others that were swept within a group.
    """
    if "seed" not in keys and all(len(partition(members, ["seed"])) == len(members) for members in parts):
        return ["seed"]
    runs = [run for members in parts for run in members]
    # an option that only depends on the group, such as a tuned rate, does not keep runs of two groups from being a pair
    swept = [key for key in swept_keys(runs) if any(_differs(key, members) for members in parts)]
    return [key for key in dict.fromkeys(["seed", *swept]) if key not in keys]


def group_label(run: RecordedRun, keys: Iterable[str]) -> str:
    """The label of the group that a run is in, by its values of those of these options that it has."""
    return label({key: run.config[key] for key in keys if key in run.config})


def label(values: dict[str, Any]) -> str:
    """``adamw lr=0.001``: components by name, options without their group where that is unambiguous.

    Without any values, as where all runs are one group, ``all``.
    """
    short = [key.rpartition(".")[2] for key in values]
    words = []
    for key, name in zip(values, short, strict=True):
        value = values[key]
        if name == "name":
            words.append(str(value))
        else:
            words.append(f"{name if short.count(name) == 1 else key}={config_text(value)}")
    return " ".join(words) or "all"


def config_text(value: Any) -> str:
    """A value as it is written in a config."""
    return json.dumps(value).strip('"')
