"""The command line of a comparison: the contenders, their seeds and budget, and the grids on which each is tuned."""

import dataclasses
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from trainer.compare.grids import grid_values
from trainer.compare.tables import expanded
from trainer.config.command_line import parse_arguments, parse_overrides
from trainer.config.compose import GridPoint, compose_grid
from trainer.config.schema import Config, check_config
from trainer.errors import ConfigError, nearest
from trainer.options import flatten, to_dict
from trainer.report.grouping import label

FOLDER, BUDGET, TUNE = "compare.dir", "budget_from", "tune."
HOLDOUT = 0.1
"""Share of the training set that contenders are tuned on, unless data.holdout names another."""

Options = dict[str, Any]
"""Of the optimizer."""


@dataclass(frozen=True)
class Contender:
    """One of what is compared: a point of the grid of all that is swept but the seed."""

    label: str
    names: frozenset[str]
    """By which the command line may call it: its label, and each of its swept values."""
    overrides: list[str]
    config: Config


@dataclass(frozen=True)
class Command:
    """A comparison as its command line describes it, checked as far as possible without data."""

    words: list[str]
    """The command line without what does not change the comparison: its folder, the format of its output."""
    folder: Path | None
    json: bool
    contenders: list[Contender]
    seeds: list[int]
    reference: str | None
    """The label of the contender whose training seconds are the budget of all; None: each has its config's."""
    trials: dict[str, list[Options]]
    """What each contender tries, by its label; empty: nothing is tuned."""

    @property
    def tuning_seed(self) -> int:
        """The seed of all trials, which no compared run has."""
        return max(self.seeds) + 1

    @property
    def runs(self) -> int:
        """The number of all runs: reference, trials, and each contender with each seed."""
        trials = sum(map(len, self.trials.values()))
        return (self.reference is not None) + trials + len(self.contenders) * len(self.seeds)

    @property
    def tuned_options(self) -> list[str]:
        """The dotted names of the options that are tuned."""
        return list(
            dict.fromkeys(f"optimizer.{o}" for trials in self.trials.values() for t in trials for o in t)
        )


def parse_command(argv: Sequence[str]) -> Command:
    """Reads a command line; composes and checks all contenders.

    Raises:
        ConfigError: an option is unknown or wrong for one of the contenders, or the comparison would not be fair.
    """
    argv = expanded(argv)
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
    """Returns the seeds, and a contender for each combination of all else that is swept."""
    parsed = list(zip(args.overrides, parse_overrides(args.overrides), strict=True))
    if any(override.key_or_group == "hydra.run.dir" for _, override in parsed):
        raise ConfigError(f"a comparison has no hydra.run.dir: name its folder with {FOLDER}=FOLDER")
    swept = {o.key_or_group for _, o in parsed if o.is_sweep_override()}
    points = compose_grid(args, [text for text, o in parsed if o.key_or_group != "seed"])
    if any(point.config.dry_run for point in points):
        raise ConfigError(
            "trainer.compare does not support dry_run: run python -m trainer dry_run=true for each contender"
        )
    of_seeds = [text for text, o in parsed if o.key_or_group == "seed"]
    seeds = [point.config.seed for point in compose_grid(args, [*points[0].overrides, *of_seeds])]
    contenders = [contender(point, swept, prepared(point.config, seeds[0], tuned)) for point in points]
    refuse_repeated("seed", [f"seed={seed}" for seed in seeds])
    refuse_repeated("contender", [c.label for c in contenders])
    return seeds, contenders


def refuse_repeated(kind: str, names: list[str]) -> None:
    """Refuses a list in which a name stands twice.

    Raises:
        ConfigError: one does.
    """
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"duplicate {kind}: {', '.join(repeated)}")


def prepared(config: Config, seed: int, tuned: bool) -> Config:
    """Returns the config for a run among many: silent, and with a validation split if it is tuned."""
    sinks = [sink for sink in config.monitor.sinks if sink != "console"]
    data = config.data | ({"holdout": HOLDOUT} if tuned and not config.loader.holdout else {})
    monitor = dataclasses.replace(config.monitor, sinks=sinks)
    return dataclasses.replace(config, seed=seed, data=data, monitor=monitor)


def contender(point: GridPoint, swept: set[str], config: Config) -> Contender:
    """Returns the contender of a point of the grid, named after its values of what is swept."""
    components = flatten(to_dict(config)).keys()
    values = {}
    for override in parse_overrides(point.overrides):
        key = override.key_or_group
        if key in swept:
            values[f"{key}.name" if f"{key}.name" in components else key] = override.value()
    name = label(values) if values else config.optimizer["name"]
    return Contender(name, frozenset([name, *map(str, values.values())]), point.overrides, config)


def find_reference(name: str, contenders: Sequence[Contender]) -> str:
    """Returns the label of the one contender that ``budget_from`` names.

    Raises:
        ConfigError: it names none or several.
    """
    found = called(name, contenders, BUDGET)
    if len(found) > 1:
        raise ConfigError(f"{BUDGET}={name} names {' and '.join(c.label for c in found)}: choose one of them")
    return found[0].label


def called(name: str, contenders: Sequence[Contender], key: str) -> list[Contender]:
    """Returns the contenders of a name: the one with this label, else all that have it among their names.

    Args:
        key: the option that names them, for the error message.

    Raises:
        ConfigError: there is none.
    """
    exact = [c for c in contenders if c.label == name]
    found = exact or [c for c in contenders if name in c.names]
    if not found:
        raise ConfigError(f"{key}: unknown contender {name!r}{nearest(name, [c.label for c in contenders])}")
    return found


def trials_of(contenders: Sequence[Contender], tunes: Mapping[str, str]) -> dict[str, list[Options]]:
    """Returns the trials of each contender by its label.

    Args:
        tunes: grids by ``tune.OPTION``, or ``tune.OPTION.CONTENDER``, which has precedence.

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
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(f"a fair comparison gives each contender the same number of trials, not {listed}")
    return trials


def variant(config: Config, options: Options, seed: int, seconds: float | None) -> Config:
    """Returns a contender's config with other optimizer options, another seed and another budget.

    Args:
        seconds: the budget of training time; None: that of the config.

    Raises:
        ConfigError: the optimizer has no such option, or the value is out of its range.
    """
    values = to_dict(config)
    values["optimizer"] |= options
    values["seed"] = seed
    if seconds is not None:
        values["loop"] |= {"max_epochs": None, "max_steps": None, "max_time": seconds}
    return check_config(values)
