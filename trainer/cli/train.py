"""``python -m trainer``: one run, or with ``--multirun`` a sweep of them, from Hydra overrides."""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.text import Text

from trainer.cli.common import fail, folding_table, print_any_text, refuse, show_cause, table_console
from trainer.config.command_line import CONF, parse_arguments
from trainer.config.compose import (
    FROZEN,
    GridPoint,
    compose_grid,
    compose_run,
    names_run_directory,
    resolve,
    store_frozen,
)
from trainer.config.plugins import load_plugins
from trainer.config.recipes import warn_of_kept_options
from trainer.config.schema import Config
from trainer.distributed.failure_detector import print_verdict
from trainer.distributed.ranks import SINGLE_PROCESS, Ranks, join
from trainer.errors import ConfigError, MachineError, UserError, one_line
from trainer.formatting import printable
from trainer.metrics import metric_of
from trainer.rundir.directory import RunDirectory, VisitedRunDirectory
from trainer.rundir.status import CRASHED, FINISHED, INTERRUPTED, PREEMPTED, USER_ERROR

if (
    TYPE_CHECKING
):  # what trains is imported once the command line is known to be right, so that a mistake shows early
    from trainer.training.run import Result


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    print_any_text()
    try:
        with join() as ranks:
            try:
                return run_command(argv, ranks)
            except UserError as error:
                # a rank that has not the same mistake would wait for this one
                ranks.fail(one_line(error), USER_ERROR)
                if ranks.is_rank0:
                    return refuse(error)
                show_cause(error)
                return USER_ERROR
    except UserError as error:
        return refuse(error)
    except MachineError as error:
        return fail(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def run_command(argv: list[str], ranks: Ranks) -> int:
    """Does what a command line asks for; every rank calls it. Returns the exit code.

    Raises:
        UserError: on all ranks, if one of them cannot do it.
    """
    args = ranks.run_on_all(lambda: parse_arguments(argv))
    if args.help or args.hydra_help or args.shell_completion:
        ranks.run_on_all(lambda: load_plugins(args.overrides))
        hydra_app(args, argv, print)
        return FINISHED
    points, directory = ranks.run_on_all(lambda: check(args))
    if args.cfg or args.info:
        hydra_app(args, argv, print)
        return FINISHED
    configs = [point.config for point in points]
    if args.multirun and ranks.world_size > 1:
        raise ConfigError(
            "--multirun trains on one rank: start its runs one by one, or with python -m launch"
        )
    if ranks.is_rank0:
        warn_of_kept_options(args, [point.overrides for point in points])
    if any(config.dry_run for config in configs):
        from trainer.cli.dry_run import dry_run

        for config in configs:
            dry_run(config, ranks)
        return FINISHED
    if directory is None:
        return sweep(args, argv)
    return single(args, configs[0], directory, ranks)


def check(args: Namespace) -> tuple[list[GridPoint], Path | None]:
    """Composes and checks the config of every run that the command line asks for.

    Returns:
        The runs, and the directory of a single one; None for a sweep.

    Raises:
        UserError: one of them is wrong.
    """
    if args.multirun:
        return compose_grid(args, args.overrides), None
    config, directory = compose_run(args)
    return [GridPoint(args.overrides, config)], directory


def single(args: Namespace, config: Config, path: Path, ranks: Ranks) -> int:
    """Runs one config in its directory; returns the exit code."""
    named = bool(args.config_path) or names_run_directory(args.overrides)
    directory = shared_directory(ranks, path, unique=not named)
    return run_in(directory, config, args.overrides, ranks).code


def shared_directory(ranks: Ranks, path: Path, *, unique: bool) -> RunDirectory:
    """The directory that the first rank makes and locks, as each rank sees it.

    Args:
        ranks: every one of them calls this.
        path: of the directory.
        unique: if it exists, take it with a number appended.

    Raises:
        UserError: the first rank cannot make or lock it.
    """
    made = ranks.run_on_all(lambda: RunDirectory(path, unique=unique) if ranks.is_rank0 else None)
    actual = ranks.all_gather_object(made.path if made else path)[0]
    return made or VisitedRunDirectory(actual)


def run_in(
    directory: RunDirectory, config: Config, overrides: list[str], ranks: Ranks = SINGLE_PROCESS
) -> "Result":
    """Trains in a run directory and releases it; one in which nothing was written is removed."""
    from trainer.training.run import run

    def end_with_peer(cause: str, code: int) -> None:
        """Until training sets its own."""
        directory.remove_if_unused()
        print_verdict(cause, code)

    ranks.on_peer_failure(end_with_peer)
    try:
        return run(config, directory, overrides, ranks)
    finally:
        directory.remove_if_unused()
        directory.release()


def sweep(args: Namespace, argv: list[str]) -> int:
    """Runs every point of a grid through Hydra's sweeper and launcher, the rest too if one fails.

    Returns:
        The highest exit code of the runs.
    """
    from trainer.training.run import Result

    results: list[tuple[str, Result]] = []

    def task(composed: DictConfig) -> float | None:
        hydra_config = HydraConfig.get()
        overrides = list(hydra_config.overrides.task)
        print(f"\nrun {hydra_config.job.num}: {' '.join(overrides)}", flush=True)
        try:
            directory = RunDirectory(Path(hydra_config.runtime.output_dir), unique=False)
            result = run_in(directory, resolve(composed, args), overrides)
        except UserError as error:
            result = Result(refuse(error), {}, "")
        except MachineError as error:
            result = Result(fail(error), {}, "")
        if result.code in (PREEMPTED, INTERRUPTED):
            sys.exit(result.code)
        results.append((" ".join(overrides), result))
        return result.metrics.get(result.primary)

    hydra_app(args, argv, task)
    show_sweep(results)
    return max((result.code for _, result in results), default=FINISHED)


def show_sweep(results: "list[tuple[str, Result]]") -> None:
    """Prints the overrides, the end and the metrics of each run."""
    names = sorted({name for _, result in results for name in result.metrics})
    table = folding_table("run", "result", *names)
    words = {FINISHED: "finished", CRASHED: "failed", USER_ERROR: "refused"}
    for overrides, result in results:
        values = [metric_of(n).text(result.metrics[n]) if n in result.metrics else "" for n in names]
        table.add_row(Text(printable(overrides)), words[result.code], *values)
    table_console().print(table)


def hydra_app(args: Namespace, argv: list[str], task: object) -> None:
    """Hands the command line to Hydra as it is, but for the frozen config that it names, which is data."""
    path: str | None = str(CONF)
    name = "config"
    if args.config_path:
        store_frozen(args)
        path, name, argv = None, FROZEN, without_frozen(argv)
    sys.argv = [sys.argv[0], *argv]  # shell completion is installed for the command by which it was called
    os.environ.setdefault("HYDRA_MAIN_MODULE", "trainer.__main__")
    hydra.main(config_path=path, config_name=name, version_base="1.3")(task)()  # type: ignore[arg-type]


def without_frozen(argv: list[str]) -> list[str]:
    """A command line without ``--config-path`` and ``--config-name`` and their values."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-path", "-cp")
    parser.add_argument("--config-name", "-cn")
    return parser.parse_known_args(argv)[1]
