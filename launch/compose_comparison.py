"""Comparisons as jobs: one for each seed, in which all contenders train on one node, on a budget measured there."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from launch.compose import launch_options
from launch.options import LaunchOptions
from trainer.compare.arguments import BUDGET, FOLDER, TUNE, Command, parse_command
from trainer.compare.resume import write_record
from trainer.config.compose import hydra_session, parse_arguments
from trainer.errors import ConfigError


@dataclass(frozen=True)
class SeedPoint:
    """The comparison with one seed."""

    name: str
    overrides: list[str]
    """The words of python -m trainer.compare."""
    command: Command

    def freeze(self, directory: Path) -> None:
        """Writes the contenders as they are now."""
        write_record(self.command, directory)


def compose_comparison(arguments: list[str]) -> tuple[LaunchOptions, list[SeedPoint]]:
    """The options of the launch, and the comparison with each seed.

    Raises:
        UserError: an option is wrong, for one of the contenders or for a comparison.
    """
    launch = [word for word in arguments if word.partition("=")[0].partition(".")[0] == "launch"]
    words = [word for word in arguments if word not in launch]
    for word in words:
        if word == "--json" or word.startswith(f"{FOLDER}="):
            raise ConfigError(
                f"{word}: the launcher chooses the folders, below launch.dir, and prints nothing else"
            )
    args = parse_arguments([word for word in words if not word.startswith((f"{BUDGET}=", TUNE))])
    with hydra_session(args) as session:
        options = launch_options(session, args, launch)
    if options.tasks > 1:
        raise ConfigError(
            f"launch.nodes={options.nodes} and launch.gpus_per_node={options.gpus_per_node} give a job "
            f"{options.tasks} processes: a comparison trains its contenders in one, one after another"
        )
    command = parse_command(words)
    for contender in command.contenders:
        if contender.config.parallel["name"] != "none":
            raise ConfigError(
                f"parallel={contender.config.parallel['name']} needs more than one process, and a comparison "
                "trains its contenders in one: use parallel=none"
            )
    without_seed = [word for word in words if word.partition("=")[0] != "seed"]
    points = []
    for number, seed in enumerate(command.seeds):
        own = [*without_seed, f"seed={seed}"]
        points.append(
            SeedPoint(f"{number}_seed={seed}", own, dataclasses.replace(command, words=own, seeds=[seed]))
        )
    return options, points
