"""Comparisons as jobs: one for each seed, in which all contenders train on one node, on a budget measured there.

With a search there are jobs before them that make its trials, in a folder that all jobs share.
"""

import dataclasses
from functools import partial
from pathlib import Path

from launch.compose import SweepPoint, launch_options
from launch.options import LaunchOptions
from trainer.compare.arguments import BUDGET, FOLDER, SEEDS, Command, parse_command
from trainer.compare.protocol import ComparisonRun
from trainer.compare.resume import write_record
from trainer.compare.tables import expanded
from trainer.compare.tuning_options import PARALLEL, SEARCH, SEARCH_FOLDER, TUNE, count
from trainer.config.command_line import parse_arguments
from trainer.distributed.strategies import STRATEGIES
from trainer.errors import ConfigError


def compose_comparison(arguments: list[str]) -> tuple[LaunchOptions, list[SweepPoint], list[str]]:
    """Composes and checks the launch, and the comparison with each seed.

    Returns:
        The options of the launch, its jobs, and the options in which the contenders differ.

    Raises:
        UserError: an option is wrong, for one of the contenders or for a comparison.
    """
    launch = [word for word in arguments if word.partition("=")[0].partition(".")[0] == "launch"]
    parallel = [word for word in arguments if word.startswith(f"{PARALLEL}=")]
    words = expanded([word for word in arguments if word not in [*launch, *parallel]])
    for word in words:
        if word == "--json" or word.partition("=")[0] in (FOLDER, SEEDS, SEARCH_FOLDER):
            raise ConfigError(
                f"{word}: the launcher chooses the folders, below launch.dir, and the seeds of each job, and prints "
                f"nothing else"
            )
    if len(parallel) > 1:
        raise ConfigError(f"{PARALLEL} is given twice")
    args = parse_arguments([word for word in words if not word.startswith((f"{BUDGET}=", TUNE))])
    options = launch_options(args, launch)
    if options.tasks > 1:
        raise ConfigError(
            f"launch.nodes={options.nodes} and launch.gpus_per_node={options.gpus_per_node} give a job "
            f"{options.tasks} processes: a comparison trains its contenders in one, one after another"
        )
    if options.runs_per_job > 1:
        raise ConfigError(
            f"launch.runs_per_job={options.runs_per_job}: a comparison measures seconds, so that its jobs share nothing"
        )
    command = parse_command(words)
    for contender in command.contenders:
        strategy = contender.config.parallel["name"]
        if STRATEGIES.get(strategy).target.min_ranks > 1:
            raise ConfigError(
                f"parallel={strategy} needs more than one process, and a comparison "
                "trains its contenders in one: use parallel=none"
            )
    if parallel and not command.search:
        raise ConfigError(f"{parallel[0]} needs {SEARCH}=tpe: the job of a seed tries its grid by itself")
    folder = Path(options.dir).absolute()
    keys = ComparisonRun(command, folder).keys
    if command.search:
        jobs = [count(PARALLEL, word.partition("=")[2]) for word in parallel]
        return options, with_search(command, folder / "search", *jobs), keys
    points = [
        point(f"{number}_seed={seed}", command, [*command.words, f"{SEEDS}=[{seed}]"])
        for number, seed in enumerate(command.seeds)
    ]
    return options, points, keys


def with_search(command: Command, folder: Path, jobs: int = 1) -> list[SweepPoint]:
    """The jobs of a comparison with a search: those that make its trials, and after them those of the seeds.

    Args:
        command: the comparison.
        folder: of the search.
        jobs: the number of those that search.
    """
    shares: list[tuple[str, list[int]]] = [
        ("search", []),
        *((f"seed={seed}", [seed]) for seed in command.seeds),
    ]
    points: list[SweepPoint] = []
    for name, seeds in [*shares[:1] * jobs, *shares[1:]]:
        words = [*command.words, f"{SEARCH_FOLDER}={folder}", f"{SEEDS}={seeds}"]
        points.append(point(f"{len(points)}_{name}", command, words, stage=len(seeds)))
    return points


def point(name: str, command: Command, words: list[str], stage: int = 0) -> SweepPoint:
    """A job of a comparison, whose contenders are frozen as they are now."""
    plugins = list(dict.fromkeys(module for c in command.contenders for module in c.config.plugins))
    freeze = partial(write_record, dataclasses.replace(command, words=words))
    return SweepPoint(name, words, plugins, freeze, stage)
