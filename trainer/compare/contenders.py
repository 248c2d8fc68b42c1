"""What is compared: contenders, composed from a command line, and their configs with other options and budgets."""

import dataclasses
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from trainer.config.command_line import parse_overrides
from trainer.config.compose import GridPoint, compose_grid
from trainer.config.schema import Config, check_config
from trainer.errors import ConfigError, nearest
from trainer.options import flatten, to_dict
from trainer.report.grouping import label

T = TypeVar("T")

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


def compose_all(args: Namespace, tuned: bool) -> tuple[list[int], list[Contender]]:
    """Returns the seeds, and a contender for each combination of all else that is swept."""
    parsed = list(zip(args.overrides, parse_overrides(args.overrides), strict=True))
    if any(override.key_or_group == "hydra.run.dir" for _, override in parsed):
        raise ConfigError("a comparison has no hydra.run.dir: name its folder with compare.dir=FOLDER")
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


def rotated(items: Sequence[T], by: int) -> list[T]:
    """The items, beginning with item ``by`` modulo their number: so a drift of the machine's speed favours none."""
    by %= len(items)
    return [*items[by:], *items[:by]]
