"""The commands on the directory of a sweep: status, logs, wait, cancel, rerun. Each returns its exit code."""

import dataclasses
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from launch import local_executor, slurm_executor
from launch.display import follow, table, wait_for_end, watch
from launch.run_states import RunState, run_states
from launch.sweep_dir import Sweep, SweepRun, executor_of, read_sweep
from trainer.cli.common import table_console
from trainer.errors import ConfigError, UserError, nearest
from trainer.rundir.status import CRASHED, FINISHED
from trainer.rundir.strict_json import dumps


def status(args: Namespace) -> int:
    """Shows the state of every run: a table, which is live on a terminal, or JSON."""
    sweep = read_sweep(args.directory)
    console = table_console()
    if console.is_terminal and not args.json:
        watch(sweep, console)
        return FINISHED
    states, problem = run_states(sweep)
    if args.json:
        print(dumps([as_json(state) for state in states], indent=2))
        if problem:
            print(f"error: {problem}", file=sys.stderr)
    else:
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
    """Cancels runs that have not ended, and notes in sweep.json that its user did it.

    A job ends as a whole: runs that share it with one that is named are cancelled with it, and the command says so.

    Raises:
        UserError: there is no such run, or the jobs cannot be cancelled.
    """
    sweep = read_sweep(args.directory)
    active = {state.name for state in run_states(sweep)[0] if state.is_active or state.state == "unknown"}
    runs = [run for run in sweep.runs if run.name in active and run.jobs]
    named = chosen_runs(sweep, args.runs)
    is_slurm = sweep.options.name == "slurm"
    ended = {ends_as_one(run.jobs[-1], is_slurm) for run in runs if run.name in named}
    runs = [run for run in runs if ends_as_one(run.jobs[-1], is_slurm) in ended]
    if runs:
        executor = slurm_executor if is_slurm else local_executor
        executor.cancel([run.jobs[-1] for run in runs])
    for run in runs:
        run.cancelled = run.jobs[-1]
    sweep.write()
    print(f"cancelled {len(runs)} of {len(sweep.runs)} runs")
    if others := [run.name for run in runs if run.name not in named]:
        print(
            f"among them, in the same {'job' if is_slurm else 'launcher'}: {', '.join(others)}; these go on by "
            f"python -m launch rerun {args.directory} {' '.join(name.partition('_')[0] for name in others)}"
        )
    return FINISHED


def ends_as_one(job: str, is_slurm: bool) -> object:
    """What a cancelled job ends with: Slurm's job, or the process that executes it and others on this machine."""
    return job if is_slurm else executor_of(job)


def chosen_runs(sweep: Sweep, names: Sequence[str]) -> set[str]:
    """The names of the runs that a command line names; all, if it names none.

    Raises:
        ConfigError: one of them is unknown.
    """
    return {find_run(sweep, name).name for name in names} or {run.name for run in sweep.runs}


def rerun(args: Namespace) -> int:
    """Submits again the failed runs, or all that are not finished, queued or running; of those that are named, if any.

    Raises:
        UserError: there is no such run, the states of the runs cannot be found out, or Slurm refuses the jobs.
    """
    sweep = read_sweep(args.directory)
    named = chosen_runs(sweep, args.runs)
    states, problem = run_states(sweep)
    if problem:
        raise UserError(problem)
    chosen = {
        state.name for state in states if (state.state == "failed" if args.failed else is_incomplete(state))
    }
    runs = [run for run in sweep.runs if run.name in chosen & named]
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
