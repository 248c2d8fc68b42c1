"""How contenders are tuned, as the command line says it: ``tune.OPTION=...``, on a grid or by a search."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from trainer.cli.common import need_package
from trainer.compare.contenders import Contender, Options, called
from trainer.compare.grids import Domain, Interval, grid_values, search_domain
from trainer.config.command_line import parse_overrides
from trainer.errors import ConfigError, nearest
from trainer.options import Count, check_value
from trainer.rundir.files import METRICS

T = TypeVar("T")

TUNE, SEARCH, TRIALS, PRUNE = "tune.", "tune.search", "tune.trials", "tune.prune"
SEARCH_FOLDER, PARALLEL = "tune.dir", "tune.parallel"
SETTINGS = (SEARCH, TRIALS, PRUNE, SEARCH_FOLDER)
"""Of a search; no options of an optimizer."""

Sampler = Literal["tpe", "random"]
Pruner = Literal["asha", "median"]
Space = dict[str, Domain]
"""By option of the optimizer."""


@dataclass(frozen=True)
class Search:
    """A search of the best options of each contender."""

    sampler: Sampler
    trials: int
    """Of each contender."""
    pruner: Pruner | None
    """What ends trials early; None: nothing does."""
    spaces: dict[str, Space]
    """By the contender's label."""
    folder: Path | None
    """That processes on several machines share, absolute; None: the comparison's."""

    def sentence(self) -> str:
        """Who made the trials, and who ended them early."""
        pruned = f", and pruned by {self.pruner}" if self.pruner else ""
        return f"The trials were chosen by {self.sampler}{pruned}."


def split(tunes: Mapping[str, str], contenders: Sequence[Contender]) -> tuple[dict[str, str], Search | None]:
    """Returns the grids among the options of the tuning, or else the search that they describe.

    Raises:
        UserError: the search is wrong, cannot be made, or lacks something; or there is none to which a setting belongs.
    """
    if PARALLEL in tunes:
        raise ConfigError(f"{PARALLEL} is for python -m launch compare: here trials follow one another")
    settings = {key: text for key, text in tunes.items() if key in SETTINGS}
    options = {key: text for key, text in tunes.items() if key not in SETTINGS}
    if SEARCH not in settings:
        if settings:
            [*_, key] = settings
            raise ConfigError(f"{key} needs {SEARCH}=tpe: a grid tries all of its values")
        return options, None
    sampler = chosen(SEARCH, settings[SEARCH], get_args(Sampler))
    if TRIALS not in settings:
        raise ConfigError(f"{SEARCH}={sampler} needs {TRIALS}=NUMBER, of each contender")
    need_package(f"{SEARCH}={sampler}", "optuna", "search")
    for each in contenders:
        if "jsonl" not in each.config.monitor.sinks:
            raise ConfigError(f"{SEARCH}={sampler} reads {METRICS}: monitor.sinks must have jsonl in it")
    return {}, Search(
        sampler=sampler,
        trials=count(TRIALS, settings[TRIALS]),
        pruner=chosen(PRUNE, settings[PRUNE], get_args(Pruner)) if PRUNE in settings else None,
        spaces=spaces_of(contenders, options),
        folder=Path(settings[SEARCH_FOLDER]).absolute() if SEARCH_FOLDER in settings else None,
    )


def chosen(key: str, text: str, known: Sequence[str]) -> Any:
    """Returns the text, one of those that are known.

    Raises:
        ConfigError: it is not.
    """
    if text not in known:
        raise ConfigError(f"unknown {key}={text}{nearest(text, known)}")
    return text


def count(key: str, text: str) -> int:
    """Returns a number of at least 1.

    Raises:
        ConfigError: the text is none.
    """
    (override,) = parse_overrides([f"{key}={text}"])
    number: int = check_value(Count, text if override.is_sweep_override() else override.value(), key)
    return number


def spaces_of(contenders: Sequence[Contender], tunes: Mapping[str, str]) -> dict[str, Space]:
    """Returns the space of each contender by its label; the arguments are those of `trials_of`.

    Raises:
        ConfigError: a domain is wrong, or a contender has none.
    """
    spaces = by_contender(contenders, tunes, search_domain)
    for name, space in spaces.items():
        if not space:
            raise ConfigError(
                f"{name} has nothing to search: say where, such as 'tune.lr=log(1e-4,1e-1)' for all"
            )
    return spaces


def trials_of(contenders: Sequence[Contender], tunes: Mapping[str, str]) -> dict[str, list[Options]]:
    """Returns the trials of each contender on a grid, by its label.

    Args:
        contenders: all of them.
        tunes: grids by ``tune.OPTION``, or ``tune.OPTION.CONTENDER``, which has precedence.

    Raises:
        ConfigError: a grid is wrong, or the contenders have different numbers of trials.
    """
    if not tunes:
        return {}
    grids = by_contender(contenders, tunes, grid_values)
    trials = {
        name: [dict(zip(grid, point, strict=True)) for point in product(*grid.values())]
        for name, grid in grids.items()
    }
    counts = {name: len(found) if grids[name] else 0 for name, found in trials.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(f"a fair comparison gives each contender the same number of trials, not {listed}")
    return trials


def corners(space: Space) -> Iterator[Options]:
    """The options at the ends of every interval, and with every value of a list: each option by itself."""
    ends = {name: [d.low, d.high] if isinstance(d, Interval) else d for name, d in space.items()}
    for name, values in ends.items():
        for value in values:
            yield {**{other: several[0] for other, several in ends.items()}, name: value}


def by_contender(
    contenders: Sequence[Contender], tunes: Mapping[str, str], read: Callable[[str, str], T]
) -> dict[str, dict[str, T]]:
    """Returns what ``tune.OPTION`` and ``tune.OPTION.CONTENDER`` say, by contender and option.

    Args:
        contenders: all of them; one of which nothing is said has no options.
        tunes: as in `trials_of`.
        read: makes a value of a key and its text.

    Raises:
        ConfigError: a contender is unknown.
    """
    found: dict[str, dict[str, T]] = {c.label: {} for c in contenders}
    for key in sorted(tunes, key=lambda key: key.count(".") > 1):  # those of one contender last
        option, _, name = key.removeprefix(TUNE).partition(".")
        for each in called(name, contenders, key) if name else contenders:
            found[each.label][option] = read(key, tunes[key])
    return found
