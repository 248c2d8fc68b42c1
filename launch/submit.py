"""Submitting: from a command line to the directory of a sweep and its jobs."""

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from launch import local_executor, slurm_executor
from launch.compose import SweepPoint, compose_sweep
from launch.compose_comparison import compose_comparison
from launch.notify import check_urls
from launch.options import SlurmOptions
from launch.snapshot import take_snapshot
from launch.sweep_dir import Sweep, SweepRun, by_stage, new_directory
from trainer.cli.common import folding_table, table_console
from trainer.config.plugins import announced_modules
from trainer.formatting import counted, printable
from trainer.rundir.status import FINISHED
from trainer.signals import signals_blocked
from trainer.streams import print_if_read


def launch(arguments: list[str]) -> int:
    """Makes the directory of a sweep and submits its runs, or shows them for a dry run.

    Args:
        arguments: options of the launcher and of the runs; "compare" first, for a comparison; "--dry-run".

    Returns:
        The exit code.

    Raises:
        UserError: an option is wrong or Slurm refuses; then nothing was submitted, and no directory is left behind.
    """
    rest = [argument for argument in arguments if argument != "--dry-run"]
    is_dry_run, is_comparison = rest != arguments, rest[:1] == ["compare"]
    keys: list[str] = []
    if is_comparison:
        options, points, keys = compose_comparison(rest[1:])
    else:
        options, points = compose_sweep(rest)
    runs = [SweepRun(point.name, point.overrides, stage=point.stage) for point in points]
    sweep = Sweep(Path(options.dir).absolute(), Path.cwd(), options, runs, is_comparison)
    if isinstance(options, SlurmOptions):
        slurm_executor.check_path(sweep.path)
    if is_dry_run:
        show(sweep)
        return FINISHED
    check_urls(options.notify)
    with signals_blocked():  # Ctrl-C must not take the directory away from jobs that are queued already
        with new_directory(sweep.path):
            prepare(sweep, points)
            if isinstance(options, SlurmOptions):
                slurm_executor.submit(sweep, runs)
        print_if_read(
            f"{counted(len(runs), 'run')} in {sweep.path}; see python -m launch status {sweep.path}"
        )
        if is_comparison:
            # each job has a budget and tuned options of its own, by which the report would group them, too
            print_if_read(f"report: python -m trainer.report {sweep.path}/*/runs --by {','.join(keys)}")
    return FINISHED if isinstance(options, SlurmOptions) else local_executor.execute(sweep, runs)


def prepare(sweep: Sweep, points: Sequence[SweepPoint]) -> None:
    """Writes everything that the jobs will read: code, frozen configs, sweep.json."""
    sweep.jobs.mkdir(mode=0o700)
    if sweep.options.snapshot:
        named = (module for point in points for module in point.plugins)
        take_snapshot(sweep.code, dict.fromkeys([*announced_modules(), *named]))
    for run, point in zip(sweep.runs, points, strict=True):
        sweep.directory(run).mkdir(mode=0o700)
        point.freeze(sweep.directory(run))
    sweep.write()


def show(sweep: Sweep) -> None:
    """Prints the runs and, for Slurm, the job script of each stage."""
    console = table_console()
    count = counted(len(sweep.runs), "run")
    console.print(Text(printable(f"{count} in {sweep.path}"), "italic"), soft_wrap=True)
    table = folding_table("run", "overrides")
    for run in sweep.runs:
        table.add_row(run.name, Text(printable(" ".join(run.overrides))))
    console.print(table)
    if isinstance(sweep.options, SlurmOptions):
        earlier: list[str] = []
        for stage, runs in enumerate(by_stage(sweep.runs)):
            jobs = len(slurm_executor.groups_of(sweep, runs))
            text = slurm_executor.script(sweep, jobs, earlier)
            console.print(text, highlight=False, markup=False, soft_wrap=True)
            earlier.append(f"JOB{stage}")
