"""Comparisons as jobs: one for each seed, in which all contenders train on one node, on a budget measured there."""

import dataclasses
from functools import partial

from launch.compose import SweepPoint, launch_options
from launch.options import LaunchOptions
from trainer.compare.arguments import BUDGET, FOLDER, TUNE, parse_command
from trainer.compare.resume import write_record
from trainer.compare.tables import expanded
from trainer.config.command_line import parse_arguments
from trainer.distributed.strategies import STRATEGIES
from trainer.errors import ConfigError


def compose_comparison(arguments: list[str]) -> tuple[LaunchOptions, list[SweepPoint]]:
    """Composes and checks the launch, and the comparison with each seed.

    Raises:
        UserError: an option is wrong, for one of the contenders or for a comparison.
    """
    launch = [word for word in arguments if word.partition("=")[0].partition(".")[0] == "launch"]
    words = expanded([word for word in arguments if word not in launch])
    for word in words:
        if word == "--json" or word.startswith(f"{FOLDER}="):
            raise ConfigError(
                f"{word}: the launcher chooses the folders, below launch.dir, and prints nothing else"
            )
    args = parse_arguments([word for word in words if not word.startswith((f"{BUDGET}=", TUNE))])
    options = launch_options(args, launch)
    if options.tasks > 1:
        raise ConfigError(
            f"launch.nodes={options.nodes} and launch.gpus_per_node={options.gpus_per_node} give a job "
            f"{options.tasks} processes: a comparison trains its contenders in one, one after another"
        )
    command = parse_command(words)
    for contender in command.contenders:
        parallel = contender.config.parallel["name"]
        if STRATEGIES.get(parallel).target.min_ranks > 1:
            raise ConfigError(
                f"parallel={parallel} needs more than one process, and a comparison "
                "trains its contenders in one: use parallel=none"
            )
    without_seed = [word for word in words if word.partition("=")[0] != "seed"]
    plugins = list(dict.fromkeys(module for c in command.contenders for module in c.config.plugins))
    points = []
    for number, seed in enumerate(command.seeds):
        own = [*without_seed, f"seed={seed}"]
        one = dataclasses.replace(command, words=own, seeds=[seed])
        points.append(SweepPoint(f"{number}_seed={seed}", own, plugins, partial(write_record, one)))
    return options, points
