"""The command line of a comparison: the contenders, their seeds and budget, and how each is tuned."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.compare.contenders import Contender, Options, called, compose_all
from trainer.compare.grids import parsed
from trainer.compare.tables import expanded
from trainer.compare.tuning_options import SEARCH_FOLDER, TUNE, Search, split, trials_of
from trainer.config.command_line import parse_arguments
from trainer.config.recipes import warn_of_kept_options
from trainer.errors import ConfigError

FOLDER, SEEDS, BASELINE, BUDGET = "compare.dir", "compare.seeds", "compare.baseline", "budget_from"


@dataclass(frozen=True)
class Command:
    """A comparison as its command line describes it, checked as far as possible without data."""

    words: list[str]
    """The command line without what does not change the comparison: its folder, the format of its output."""
    folder: Path | None
    json: bool
    contenders: list[Contender]
    seeds: list[int]
    own_seeds: list[int]
    """Those that are run here; without any only the search is made."""
    reference: str | None
    """The label of the contender whose training seconds are the budget of all; None: each has its config's."""
    baseline: str | None
    """The label of the contender that all others are compared with; None: the one that turns out best."""
    trials: dict[str, list[Options]]
    """What each contender tries of a grid, by its label; empty: there is none."""
    search: Search | None
    """What is searched in place of a grid."""

    @property
    def tuning_seed(self) -> int:
        """The seed of all trials, which no compared run has."""
        return max(self.seeds) + 1

    @property
    def trials_of_each(self) -> int:
        """How many options each contender tries; 0: nothing is tuned."""
        return self.search.trials if self.search else max(map(len, self.trials.values()), default=0)

    @property
    def runs(self) -> int:
        """The number of all runs: reference, trials, and each contender with each seed."""
        of_each = self.trials_of_each + len(self.own_seeds)
        return (self.reference is not None) + len(self.contenders) * of_each

    @property
    def tuned_options(self) -> list[str]:
        """The dotted names of the options that are tuned."""
        grids = [options for trials in self.trials.values() for options in trials]
        spaces = self.search.spaces.values() if self.search else []
        return list(dict.fromkeys(f"optimizer.{name}" for names in [*grids, *spaces] for name in names))


def parse_command(argv: Sequence[str]) -> Command:
    """Reads a command line; composes and checks all contenders.

    Raises:
        UserError: an option is unknown or wrong for one of the contenders, the comparison would not be fair, or a
            search needs a package that is not installed.
    """
    argv = expanded(argv)
    own: dict[str, str] = {}
    others: list[str] = []
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or not (key in (FOLDER, SEEDS, BASELINE, BUDGET) or key.startswith(TUNE)):
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
    grids, search = split(tunes, contenders)
    tuned = {key.rpartition(".")[2] for key in tunes}
    warn_of_kept_options(args, [contender.overrides for contender in contenders], tuned)
    return Command(
        words=[word for word in argv if word != "--json" and not word.startswith(f"{FOLDER}=")],
        folder=Path(own[FOLDER]) if FOLDER in own else None,
        json="--json" in others,
        contenders=contenders,
        seeds=seeds,
        own_seeds=choose_seeds(own[SEEDS], seeds, search) if SEEDS in own else seeds,
        reference=find_one(BUDGET, own[BUDGET], contenders) if BUDGET in own else None,
        baseline=find_one(BASELINE, own[BASELINE], contenders) if BASELINE in own else None,
        trials=trials_of(contenders, grids),
        search=search,
    )


def choose_seeds(text: str, seeds: Sequence[int], search: Search | None) -> list[int]:
    """Returns the seeds that ``compare.seeds`` names, in the order in which the comparison has them.

    Raises:
        ConfigError: one is not of the comparison, or there are none and nothing else is to be done.
    """
    named = parsed(SEEDS, text, f"a list of seeds of {list(seeds)}")
    if unknown := [seed for seed in named if seed not in seeds]:
        raise ConfigError(f"{SEEDS}={text}: the comparison has no seed {unknown[0]} (known: {list(seeds)})")
    if not named and (search is None or search.folder is None):
        raise ConfigError(f"{SEEDS}=[] leaves only a search to be made, and needs {SEARCH_FOLDER}=FOLDER")
    return [seed for seed in seeds if seed in named]


def find_one(key: str, name: str, contenders: Sequence[Contender]) -> str:
    """Returns the label of the one contender that this option names.

    Raises:
        ConfigError: it names none or several.
    """
    found = called(name, contenders, key)
    if len(found) > 1:
        raise ConfigError(f"{key}={name} names {' and '.join(c.label for c in found)}: choose one of them")
    return found[0].label
