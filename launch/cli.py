"""The command line of ``python -m launch``. Imports no torch: only composing the configs of a sweep needs it."""

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from launch.commands import cancel, logs, rerun, status, wait
from trainer.cli.common import Parser, exit_code
from trainer.errors import ConfigError, nearest
from trainer.rundir.status import FINISHED

HELP = """\
python -m launch [launch=slurm|local] [GROUP=NAME ...] [OPTION=VALUE[,VALUE] ...] [--dry-run]

Composes, checks and freezes the config of every run of a grid, and submits all runs as one job array.
Options of the launcher begin with "launch." and are listed in conf/launch; all others are those of python -m trainer.

  python -m launch optimizer=adafisher,adamw 'seed=range(5)' launch.partition=gpu launch.time=4:00:00
  python -m launch experiment=imagenet_resnet50 parallel=ddp launch.nodes=4 launch.gpus_per_node=8
  python -m launch launch=local optimizer.lr=1e-3,3e-3 launch.array_parallelism=2

  python -m launch compare ...         submit a comparison, with the options of python -m trainer.compare: one job per
                                       seed, which trains all contenders on one node on a budget measured there;
                                       with tune.search=tpe, tune.parallel=6 jobs before them make its trials
  --dry-run                            print the runs and the job script, and submit nothing
  python -m launch status DIR [--json] show the state of every run of a sweep
  python -m launch logs DIR RUN [-f]   print the output of a run; RUN: its number or the name of its directory
  python -m launch wait DIR            wait until all runs have ended; exit code 0 if all of them finished
  python -m launch cancel DIR [RUN ...]
                                       cancel all runs, or these and those that share a job with them; those that are
                                       training save a checkpoint first
  python -m launch rerun DIR [RUN ...] [--failed | --incomplete]
                                       submit failed runs again, or all that are not finished, queued or running
"""

RUN = "number of a run, or name of its directory"

COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "status": status,
    "logs": logs,
    "wait": wait,
    "cancel": cancel,
    "rerun": rerun,
}
"""Commands on the directory of a sweep; each takes what `parse` returns, and returns the exit code."""


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    return exit_code(lambda: run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """Runs a command line; returns the exit code.

    Raises:
        UserError: the command line is wrong, or the command cannot be carried out.
    """
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](parse(argv))
    if not argv or not {"-h", "--help"}.isdisjoint(argv):
        print(HELP, end="")
        return FINISHED
    if argv[0].isalpha() and argv[0] != "compare":
        raise ConfigError(f"unknown command {argv[0]}{nearest(argv[0], [*COMMANDS, 'compare'])}")
    from launch.submit import launch  # imports torch, which takes seconds

    return launch(argv)


def parse(argv: list[str]) -> Namespace:
    """The arguments of one of `COMMANDS`, by name: ``directory`` and those of the command.

    Args:
        argv: the command's name, then its arguments.

    Raises:
        ConfigError: an argument is missing or unknown.
    """
    parser = Parser(prog=f"python -m launch {argv[0]}")
    parser.add_argument("directory", type=Path, metavar="DIR", help="directory of the sweep")
    match argv[0]:
        case "status":
            parser.add_argument("--json", action="store_true", help="print JSON")
        case "logs":
            parser.add_argument("run", metavar="RUN", help=RUN)
            parser.add_argument(
                "-f", "--follow", action="store_true", help="print new output until the run has ended"
            )
        case "cancel":
            parser.add_argument("runs", metavar="RUN", nargs="*", help=RUN)
        case "rerun":
            parser.add_argument("runs", metavar="RUN", nargs="*", help=RUN)
            which = parser.add_mutually_exclusive_group()
            which.add_argument("--failed", action="store_true", help="only failed runs")
            which.add_argument(
                "--incomplete",
                action="store_true",
                help="all runs that are not finished, queued or running (default)",
            )
    return parser.parse_args(argv[1:])
