"""The commands on the directory of a sweep: status, logs, wait, cancel, rerun. Each returns its exit code."""

import dataclasses
import sys
from argparse import Namespace
from pathlib import Path

from rich.console import Console

from launch import local_executor, slurm_executor
from launch.display import follow, table, wait_for_end, watch
from launch.run_states import RunState, run_states
from launch.sweep_dir import Sweep, SweepRun, read_sweep
from trainer.errors import ConfigError, UserError, nearest
from trainer.rundir.status import CRASHED, FINISHED
from trainer.rundir.strict_json import dumps


def status(args: Namespace) -> int:
    """Shows the state of every run: a table, which is live on a terminal, or JSON."""
    sweep = read_sweep(args.directory)
    console = Console()
    if console.is_terminal and not args.json:
        watch(sweep, console)
        return FINISHED
    states, problem = run_states(sweep)
    if args.json:
        print(dumps([as_json(state) for state in states], indent=2))
        if problem:
            print(f"error: {problem}", file=sys.stderr)
    else:
        console.width = max(console.width, 200)
        console.print(table(states, problem))
    return FINISHED


def as_json(state: RunState) -> dict[str, object]:
    """The fields of a run's state, the path of its log as text."""
    return {**dataclasses.asdict(state), "log": state.log and str(state.log)}


def wait(args: Namespace) -> int:
    """Waits until all runs have ended; `CRASHED` if one of them did not finish."""
    states = wait_for_end(read_sweep(args.directory))
    return FINISHED if all(state.state == "finished" for state in states) else CRASHED


def logs(args: Namespace) -> int:
    """Prints the output of the first process of a run.

    Raises:
        ConfigError: there is no such run, or it has no log yet.
    """
    sweep = read_sweep(args.directory)
    run = find_run(sweep, args.run)
    state = next(state for state in run_states(sweep)[0] if state.name == run.name)
    if state.log is None or not (state.log.exists() or args.follow):
        raise ConfigError(f"{run.name} is {state.state} and has no log yet")
    if args.follow:
        for content in follow(sweep, run.name, state.log):
            print(content, end="", flush=True)
    else:
        print(state.log.read_text(errors="replace"), end="")
    return FINISHED


def find_run(sweep: Sweep, name: str) -> SweepRun:
    """The run with this number or name; a path that ends in the name will do, too.

    Raises:
        ConfigError: there is none.
    """
    for run in sweep.runs:
        if name in (run.name, run.name.partition("_")[0]) or Path(name).name == run.name:
            return run
    raise ConfigError(f"unknown run {name}{nearest(name, [run.name for run in sweep.runs])}")


def cancel(args: Namespace) -> int:
    """Cancels all runs that have not ended, and notes in sweep.json that its user did it."""
    sweep = read_sweep(args.directory)
    active = {state.name for state in run_states(sweep)[0] if state.is_active or state.state == "unknown"}
    runs = [run for run in sweep.runs if run.name in active and run.jobs]
    if runs:
        executor = slurm_executor if sweep.options.name == "slurm" else local_executor
        executor.cancel([run.jobs[-1] for run in runs])
    for run in runs:
        run.cancelled = run.jobs[-1]
    sweep.write()
    print(f"cancelled {len(runs)} of {len(sweep.runs)} runs")
    return FINISHED


def rerun(args: Namespace) -> int:
    """Submits again the failed runs, or all that are not finished, queued or running.

    Raises:
        UserError: the states of the runs cannot be found out, or Slurm refuses the jobs.
    """
    sweep = read_sweep(args.directory)
    states, problem = run_states(sweep)
    if problem:
        raise UserError(problem)
    chosen = {
        state.name for state in states if (state.state == "failed" if args.failed else is_incomplete(state))
    }
    runs = [run for run in sweep.runs if run.name in chosen]
    if not runs:
        print("nothing to rerun")
        return FINISHED
    print(f"rerunning {', '.join(run.name for run in runs)}", flush=True)
    if sweep.options.name == "local":
        return local_executor.execute(sweep, runs)
    slurm_executor.submit(sweep, runs)
    return FINISHED


def is_incomplete(state: RunState) -> bool:
    """Whether a run ended, or was never submitted, without finishing."""
    return state.state != "finished" and not state.is_active
