"""The command line of a comparison: who takes part, with which seeds, on what budget, and what each tries first."""

import dataclasses
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from trainer.compare.grids import grid_values
from trainer.config.compose import (
    compose_points,
    hydra_session,
    load_plugins,
    parse_arguments,
    parse_overrides,
    resolve,
    sweep_points,
)
from trainer.config.schema import Config, check_config
from trainer.errors import ConfigError, nearest
from trainer.options import to_dict
from trainer.report.grouping import label
from trainer.report.read_runs import flatten

FOLDER, BUDGET, TUNE = "compare.dir", "budget_from", "tune."
HOLDOUT = 0.1
"""Share of the training set that contenders are tuned on, unless data.holdout names another."""

Options = dict[str, Any]
"""Of the optimizer."""


@dataclass(frozen=True)
class Contender:
    """All that was swept but for the seed."""

    label: str
    names: frozenset[str]
    """By which the command line may call it: its label and each value that makes it what it is."""
    overrides: list[str]
    config: Config


@dataclass(frozen=True)
class Command:
    """A comparison, checked as far as that goes without data."""

    words: list[str]
    """The command line, but for what does not change the comparison."""
    folder: Path | None
    json: bool
    contenders: list[Contender]
    seeds: list[int]
    reference: str | None
    """The label of the contender whose training seconds all get; None: each has the budget of its own config."""
    trials: dict[str, list[Options]]
    """What each contender tries, by its label; empty: nothing is tuned."""

    @property
    def tuning_seed(self) -> int:
        """None of those with which the contenders are compared."""
        return max(self.seeds) + 1

    @property
    def runs(self) -> int:
        """Their number, all in all."""
        trials = sum(map(len, self.trials.values()))
        return (self.reference is not None) + trials + len(self.contenders) * len(self.seeds)

    @property
    def tuned_options(self) -> list[str]:
        """By their dotted names."""
        return list(
            dict.fromkeys(f"optimizer.{o}" for trials in self.trials.values() for t in trials for o in t)
        )


def parse_command(argv: Sequence[str]) -> Command:
    """Reads a command line.

    Raises:
        ConfigError: an option is unknown or wrong for one of the contenders, or the comparison would not be fair.
    """
    own: dict[str, str] = {}
    others: list[str] = []
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or not (key in (FOLDER, BUDGET) or key.startswith(TUNE)):
            others.append(word)
        elif key in own:
            raise ConfigError(f"{key} is given twice")
        else:
            own[key] = value
    args = parse_arguments([word for word in others if word != "--json"])
    for flag in ("multirun", "cfg", "info", "config_path"):
        if getattr(args, flag):
            raise ConfigError(f"a comparison takes no --{flag.replace('_', '-')}: it sweeps by itself")
    load_plugins(args.overrides)
    tunes = {key: text for key, text in own.items() if key.startswith(TUNE)}
    seeds, contenders = compose_all(args, tuned=bool(tunes))
    return Command(
        words=[word for word in argv if word != "--json" and not word.startswith(f"{FOLDER}=")],
        folder=Path(own[FOLDER]) if FOLDER in own else None,
        json="--json" in others,
        contenders=contenders,
        seeds=seeds,
        reference=find_reference(own[BUDGET], contenders) if BUDGET in own else None,
        trials=trials_of(contenders, tunes),
    )


def compose_all(args: Namespace, tuned: bool) -> tuple[list[int], list[Contender]]:
    """The seeds, and a contender for each combination of all else that is swept."""
    parsed = list(zip(args.overrides, parse_overrides(args.overrides), strict=True))
    if any(override.key_or_group == "hydra.run.dir" for _, override in parsed):
        raise ConfigError(f"a comparison has no hydra.run.dir: name its folder with {FOLDER}=FOLDER")
    swept = {o.key_or_group for _, o in parsed if o.is_sweep_override()}
    seed_points = sweep_points([text for text, o in parsed if o.key_or_group == "seed"])
    points = sweep_points([text for text, o in parsed if o.key_or_group != "seed"])
    with hydra_session(args) as session:
        grid = [
            *([*point, *seed_points[0]] for point in points),
            *([*points[0], *seed] for seed in seed_points),
        ]
        composed = [resolve(config) for config in compose_points(session, args, grid)]
    configs, seeds = composed[: len(points)], [config.seed for config in composed[len(points) :]]
    if any(config.dry_run for config in configs):
        raise ConfigError(
            "a comparison cannot be dry: look at each contender with python -m trainer dry_run=true"
        )
    contenders = [
        contender(point, swept, prepared(config, tuned))
        for point, config in zip(points, configs, strict=True)
    ]
    for names in ([f"seed={seed}" for seed in seeds], [c.label for c in contenders]):
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"{', '.join(repeated)} takes part twice")
    return seeds, contenders


def prepared(config: Config, tuned: bool) -> Config:
    """A config for a run among many: it does not write to the terminal, and leaves something to tune on."""
    sinks = [sink for sink in config.monitor.sinks if sink != "console"]
    data = config.data | ({"holdout": HOLDOUT} if tuned and not config.data["holdout"] else {})
    return dataclasses.replace(config, data=data, monitor=dataclasses.replace(config.monitor, sinks=sinks))


def contender(point: list[str], swept: set[str], config: Config) -> Contender:
    components = flatten(to_dict(config)).keys()
    values = {}
    for override in parse_overrides(point):
        key = override.key_or_group
        if key in swept:
            values[f"{key}.name" if f"{key}.name" in components else key] = override.value()
    name = label(values) if values else config.optimizer["name"]
    return Contender(name, frozenset([name, *map(str, values.values())]), point, config)


def find_reference(name: str, contenders: Sequence[Contender]) -> str:
    found = called(name, contenders, BUDGET)
    if len(found) > 1:
        raise ConfigError(f"{BUDGET}={name} names {' and '.join(c.label for c in found)}: take one of these")
    return found[0].label


def called(name: str, contenders: Sequence[Contender], key: str) -> list[Contender]:
    """The contenders of that name."""
    exact = [c for c in contenders if c.label == name]
    found = exact or [c for c in contenders if name in c.names]
    if not found:
        raise ConfigError(f"{key}: unknown contender {name!r}{nearest(name, [c.label for c in contenders])}")
    return found


def trials_of(contenders: Sequence[Contender], tunes: Mapping[str, str]) -> dict[str, list[Options]]:
    """The grid of each contender: ``tune.OPTION``, or ``tune.OPTION.CONTENDER``, which goes before it.

    Raises:
        ConfigError: a grid is wrong, or the contenders have different numbers of trials.
    """
    if not tunes:
        return {}
    grids: dict[str, dict[str, list[Any]]] = {c.label: {} for c in contenders}
    for key in sorted(tunes, key=lambda key: key.count(".") > 1):  # those of one contender last
        option, _, name = key.removeprefix(TUNE).partition(".")
        for each in called(name, contenders, key) if name else contenders:
            grids[each.label][option] = grid_values(key, tunes[key])
    trials = {
        name: [dict(zip(grid, point, strict=True)) for point in product(*grid.values())]
        for name, grid in grids.items()
    }
    counts = {name: len(found) if grids[name] else 0 for name, found in trials.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(f"a fair comparison gives each contender the same number of trials, not {told}")
    return trials


def variant(config: Config, options: Options, seed: int, seconds: float | None) -> Config:
    """A contender's config with these options of its optimizer, this seed and so many training seconds.

    Args:
        seconds: None: its own budget.

    Raises:
        ConfigError: the optimizer has no such option, or the value is out of its range.
    """
    values = to_dict(config)
    values["optimizer"] |= options
    values["seed"] = seed
    if seconds is not None:
        values["loop"] |= {"max_epochs": None, "max_steps": None, "max_time": seconds}
    return check_config(values)
