"""``python -m trainer``: one run, or with ``--multirun`` a sweep of them, from Hydra overrides."""

import os
import sys
from argparse import Namespace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from trainer.cli.dry_run import dry_run
from trainer.config.compose import (
    CONF,
    compose,
    hydra_session,
    load_plugins,
    parse_arguments,
    resolve,
    sweep_points,
)
from trainer.config.schema import Config
from trainer.distributed.ranks import SINGLE_PROCESS, Ranks, join
from trainer.errors import ConfigError, UserError
from trainer.rundir.directory import RunDirectory, VisitedRunDirectory
from trainer.rundir.status import CRASHED, FINISHED, INTERRUPTED, PREEMPTED, USER_ERROR
from trainer.training.run import Result, run


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        with join() as ranks:
            try:
                return run_command(argv, ranks)
            except UserError as error:  # the same on all ranks
                return refuse(error) if ranks.is_rank0 else USER_ERROR
    except UserError as error:
        return refuse(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def run_command(argv: list[str], ranks: Ranks) -> int:
    args = ranks.run_on_all(lambda: parse_arguments(argv))
    ranks.run_on_all(lambda: load_plugins(args.overrides))
    if args.help or args.hydra_help or args.shell_completion:
        hydra_app(args, argv, print)
        return FINISHED
    configs = ranks.run_on_all(lambda: check(args))
    if args.cfg or args.info:
        hydra_app(args, argv, print)
        return FINISHED
    if args.multirun and ranks.world_size > 1:
        raise ConfigError(
            "--multirun trains on one rank: start its runs one by one, or with python -m launch"
        )
    if any(config.dry_run for config, _ in configs):
        for config, _ in configs:
            dry_run(config, ranks)
        return FINISHED
    if args.multirun:
        return sweep(args, argv)
    return single(args, *configs[0], ranks)


def refuse(error: UserError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return USER_ERROR


def check(args: Namespace) -> list[tuple[Config, DictConfig]]:
    """The config of every run that the command line asks for, typed and as composed.

    Raises:
        UserError: one of them is wrong.
    """
    points = sweep_points(args.overrides) if args.multirun else [args.overrides]
    with hydra_session(args) as session:
        composed = [compose(session, args, point) for point in points]
    return [(resolve(config), config) for config in composed]


def single(args: Namespace, config: Config, composed: DictConfig, ranks: Ranks) -> int:
    named = args.config_path or any(o.startswith("hydra.run.dir=") for o in args.overrides)
    directory = shared_directory(ranks, Path(composed.hydra.run.dir), unique=not named)
    return run_in(directory, config, args.overrides, ranks).code


def shared_directory(ranks: Ranks, path: Path, *, unique: bool) -> RunDirectory:
    """The directory that the first rank makes and locks, as each rank sees it."""
    made = ranks.run_on_all(lambda: RunDirectory(path, unique=unique) if ranks.is_rank0 else None)
    agreed = ranks.all_gather_object(made.path if made else path)[0]
    return made or VisitedRunDirectory(agreed)


def run_in(
    directory: RunDirectory, config: Config, overrides: list[str], ranks: Ranks = SINGLE_PROCESS
) -> Result:
    try:
        return run(config, directory, overrides, ranks)
    finally:
        directory.remove_if_unused()
        directory.release()


def sweep(args: Namespace, argv: list[str]) -> int:
    """Runs every point of a grid through Hydra's sweeper and launcher, the rest too if one fails."""
    results: list[tuple[str, Result]] = []

    def task(composed: DictConfig) -> float | None:
        hydra_config = HydraConfig.get()
        overrides = list(hydra_config.overrides.task)
        print(f"\nrun {hydra_config.job.num}: {' '.join(overrides)}", flush=True)
        try:
            directory = RunDirectory(Path(hydra_config.runtime.output_dir), unique=False)
            result = run_in(directory, resolve(composed), overrides)
        except UserError as error:
            result = Result(refuse(error), {}, "")
        if result.code in (PREEMPTED, INTERRUPTED):
            sys.exit(result.code)
        results.append((" ".join(overrides), result))
        return result.metrics.get(result.primary)

    hydra_app(args, argv, task)
    show_sweep(results)
    return max((result.code for _, result in results), default=FINISHED)


def show_sweep(results: list[tuple[str, Result]]) -> None:
    names = sorted({name for _, result in results for name in result.metrics})
    table = Table("run", "result", *names)
    words = {FINISHED: "finished", CRASHED: "failed", USER_ERROR: "refused"}
    for overrides, result in results:
        values = [f"{result.metrics[n]:.4f}" if n in result.metrics else "" for n in names]
        table.add_row(overrides, words[result.code], *values)
    Console().print(table)


def hydra_app(args: Namespace, argv: list[str], task: object) -> None:
    """Hands the command line to Hydra as it is."""
    sys.argv = ["trainer", *argv]
    os.environ.setdefault("HYDRA_MAIN_MODULE", "trainer.__main__")
    hydra.main(config_path=args.config_path or str(CONF), config_name="config", version_base="1.3")(task)()  # type: ignore[arg-type]
