"""``python -m launch``: submits runs and sweeps, and looks after them."""

import dataclasses
import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from launch import local_executor, slurm_executor
from launch.display import follow, table, wait, watch
from launch.run_states import RunState, run_states
from launch.sweep_dir import Sweep, SweepRun, read_sweep
from trainer.cli.common import Parser, exit_code
from trainer.errors import ConfigError, UserError, nearest
from trainer.rundir.status import CRASHED, FINISHED

HELP = """\
python -m launch [launch=slurm|local] [GROUP=NAME ...] [OPTION=VALUE[,VALUE] ...] [--dry-run]

Composes, checks and freezes the config of every run of a grid, and submits them as one job array.
Options of the launch itself begin with launch. and stand in conf/launch; all others are those of python -m trainer.

  python -m launch optimizer=adafisher,adamw seed=range(5) launch.partition=gpu launch.time=4:00:00
  python -m launch experiment=imagenet_resnet50 parallel=fsdp launch.nodes=4 launch.gpus_per_node=8
  python -m launch launch=local optimizer.lr=1e-3,3e-3 launch.array_parallelism=2

  python -m launch compare ...         a comparison, with the options of python -m trainer.compare: one job for each
                                       seed, in which all contenders train on one node, on a budget measured there
  --dry-run                            the table of runs and the script; nothing is submitted
  python -m launch status DIR [--json] how the runs of a sweep stand
  python -m launch logs DIR RUN [-f]   what a run has printed; RUN: its number, or its directory's name
  python -m launch wait DIR            until all have ended; exit code 0 if all have finished
  python -m launch cancel DIR          ends them, with checkpoints
  python -m launch rerun DIR [--failed | --incomplete]
                                       submits again the failed ones, or all that neither finished nor wait nor run
"""


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    return exit_code(lambda: run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return FINISHED
    command = COMMANDS.get(argv[0])
    if command:
        return command(arguments(argv))
    if argv[0].isalpha() and argv[0] != "compare":
        raise ConfigError(f"unknown command {argv[0]}{nearest(argv[0], [*COMMANDS, 'compare'])}")
    from launch.submit import launch  # composing needs torch, which takes seconds to import

    return launch(argv)


def arguments(argv: list[str]) -> Namespace:
    parser = Parser(prog=f"python -m launch {argv[0]}")
    parser.add_argument("directory", type=Path, metavar="DIR", help="the sweep's directory")
    match argv[0]:
        case "status":
            parser.add_argument("--json", action="store_true", help="print JSON")
        case "logs":
            parser.add_argument("run", metavar="RUN", help="a run's number, or its directory's name")
            parser.add_argument("-f", "--follow", action="store_true", help="until the run has ended")
        case "rerun":
            which = parser.add_mutually_exclusive_group()
            which.add_argument("--failed", action="store_true", help="those that failed")
            which.add_argument(
                "--incomplete",
                action="store_true",
                help="all that neither finished nor wait nor run (default)",
            )
    return parser.parse_args(argv[1:])


def status(args: Namespace) -> int:
    sweep = read_sweep(args.directory)
    console = Console()
    if console.is_terminal and not args.json:
        watch(sweep, console)
        return FINISHED
    rows, trouble = run_states(sweep)
    if args.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2, default=str))
        if trouble:
            print(f"error: {trouble}", file=sys.stderr)
    else:
        console.width = max(console.width, 200)
        console.print(table(rows, trouble))
    return FINISHED


def wait_for(args: Namespace) -> int:
    rows = wait(read_sweep(args.directory))
    return FINISHED if all(row.state == "finished" for row in rows) else CRASHED


def logs(args: Namespace) -> int:
    sweep = read_sweep(args.directory)
    run = find_run(sweep, args.run)
    row = next(row for row in run_states(sweep)[0] if row.name == run.name)
    if row.log is None or not (row.log.exists() or args.follow):
        raise ConfigError(f"{run.name} is {row.state} and has no log yet")
    if args.follow:
        for content in follow(sweep, run.name, row.log):
            print(content, end="", flush=True)
    else:
        print(row.log.read_text(errors="replace"), end="")
    return FINISHED


def find_run(sweep: Sweep, name: str) -> SweepRun:
    for run in sweep.runs:
        if name in (run.name, run.name.partition("_")[0]) or Path(name).name == run.name:
            return run
    raise ConfigError(f"unknown run {name}{nearest(name, [run.name for run in sweep.runs])}")


def cancel(args: Namespace) -> int:
    sweep = read_sweep(args.directory)
    under_way = {row.name for row in run_states(sweep)[0] if row.under_way or row.state == "unknown"}
    runs = [run for run in sweep.runs if run.name in under_way and run.jobs]
    if runs:
        (slurm_executor if sweep.options.name == "slurm" else local_executor).cancel(
            [run.jobs[-1] for run in runs]
        )
    for run in runs:
        run.cancelled = run.jobs[-1]
    sweep.write()
    print(f"cancelled {len(runs)} of {len(sweep.runs)} runs")
    return FINISHED


def rerun(args: Namespace) -> int:
    sweep = read_sweep(args.directory)
    rows, trouble = run_states(sweep)
    if trouble:
        raise UserError(trouble)
    wanted = {row.name for row in rows if (row.state == "failed" if args.failed else is_incomplete(row))}
    runs = [run for run in sweep.runs if run.name in wanted]
    if not runs:
        print("nothing to run again")
        return FINISHED
    print(f"again: {', '.join(run.name for run in runs)}", flush=True)
    if sweep.options.name == "local":
        return local_executor.execute(sweep, runs)
    slurm_executor.submit(sweep, runs)
    return FINISHED


def is_incomplete(row: RunState) -> bool:
    return row.state != "finished" and not row.under_way


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "status": status,
    "logs": logs,
    "wait": wait_for,
    "cancel": cancel,
    "rerun": rerun,
}

if __name__ == "__main__":
    sys.exit(main())
