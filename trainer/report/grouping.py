"""What a set of runs has swept, from their configs alone, and the groups that this makes."""

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.errors import ConfigError, nearest
from trainer.report.read_runs import RecordedRun

BESIDE = ("name", "hydra.run.dir", "hydra.output_subdir", "checkpoint.resume")
"""Options that differ between the runs of a sweep without anybody having swept them."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing that was swept but the seed, or only in what they are not grouped by."""

    label: str
    values: dict[str, Any]
    """Of the keys by which the runs are grouped."""
    runs: list[RecordedRun]
    counted: dict[Hashable, RecordedRun]
    """Finished runs by what tells them apart within the group: the seed and what else was swept."""

    @property
    def repeated(self) -> int:
        """Finished runs that do not count, since a newer one has the same config."""
        return sum(run.state == "finished" for run in self.runs) - len(self.counted)


def swept_keys(runs: Sequence[RecordedRun]) -> list[str]:
    """The options that differ, the seed among them.

    A component's own options, such as optimizer.lr, come and go with its name; they count as swept only if they
    differ between runs with the same component.
    """
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in BESIDE)
    return [key for key in keys if any(_differs(key, same) for same in _by_component(key, runs))]


def _by_component(key: str, runs: Sequence[RecordedRun]) -> Iterable[list[RecordedRun]]:
    component = f"{key.rpartition('.')[0]}.name"
    if key == component:
        return [list(runs)]
    return split(runs, [component]).values()


def _differs(key: str, runs: Sequence[RecordedRun]) -> bool:
    return len(split(runs, [key])) > 1


def split(runs: Iterable[RecordedRun], keys: Sequence[str]) -> dict[Hashable, list[RecordedRun]]:
    """The runs by their values of these options, in order of appearance."""
    groups: dict[Hashable, list[RecordedRun]] = {}
    for run in runs:
        groups.setdefault(values_of(run, keys), []).append(run)
    return groups


def values_of(run: RecordedRun, keys: Iterable[str]) -> tuple[str, ...]:
    """A run's values of these options, lists too, as something to compare and look up by."""
    return tuple(json.dumps(run.config.get(key)) for key in keys)


def group_keys(by: str | None, runs: Sequence[RecordedRun]) -> list[str]:
    """The options to group by: those of a comma-separated list, or what was swept but for the seed.

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
    for word in by.split(","):
        key = f"{word}.name" if f"{word}.name" in known else word
        if key not in known:
            groups = [key.removesuffix(".name") for key in known if key.endswith(".name")]
            raise ConfigError(f"no run has an option {word}, given by --by{nearest(word, {*swept, *groups})}")
        keys.append(key)
    return keys


def group(runs: Sequence[RecordedRun], keys: Sequence[str]) -> list[Group]:
    """The runs grouped by their values of these options."""
    split_up = split(runs, keys).values()
    # what only comes with the group, such as a tuned rate, does not keep runs of two groups from being a pair
    swept = [key for key in swept_keys(runs) if any(_differs(key, members) for members in split_up)]
    rest = [key for key in dict.fromkeys(["seed", *swept]) if key not in keys]
    groups = []
    for members in split_up:
        finished = sorted((run for run in members if run.state == "finished"), key=lambda run: run.heard or 0)
        values = {key: members[0].config.get(key) for key in keys}
        own = {key: value for key, value in values.items() if key in members[0].config}
        counted: dict[Hashable, RecordedRun] = {values_of(run, rest): run for run in finished}
        groups.append(Group(label(own), values, members, counted))
    return groups


def label(values: dict[str, Any]) -> str:
    """``adamw lr=0.001``: components by their names, options without their group's where that is clear.

    Without any values, as where all is one group, ``all``.
    """
    short = [key.rpartition(".")[2] for key in values]
    words = []
    for key, name in zip(values, short, strict=True):
        value = values[key]
        if name == "name":
            words.append(str(value))
        else:
            words.append(f"{name if short.count(name) == 1 else key}={shown(value)}")
    return " ".join(words) or "all"


def shown(value: Any) -> str:
    """A value as one would write it in a config."""
    return json.dumps(value).strip('"')
