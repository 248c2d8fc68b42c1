"""Run states as a table, waiting for them to end, and following the log of a run."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from launch.run_states import RunState, run_states
from launch.sweep_dir import Sweep
from trainer.formatting import printable
from trainer.metrics import metric_of
from trainer.rundir.status import STATES

POLL_SECONDS = 2.0
"""Time between two requests to the queue."""

COLORS = {"finished": "green", "failed": "red", "vanished": "red", "running": "cyan", "preempted": "yellow"}


def table(states: Sequence[RunState], problem: str | None) -> RenderableType:
    """A table with one row per run, and below it the problem, if there is one, and how many runs are in each state."""
    metrics = {state.metric for state in states if state.metric}
    metric = metrics.pop() if len(metrics) == 1 else "metric"
    columns = ("run", Column("state", no_wrap=True, min_width=9), "job", "Slurm state", "step")
    rows = Table(*columns, escape(printable(metric)), "restarts", "reason")
    for state in states:
        cells = [state.job, state.slurm, "" if state.step is None else str(state.step), metric_text(state)]
        cells += [str(state.restarts), state.reason]
        rows.add_row(
            Text(printable(state.name)),
            Text(state.state, COLORS.get(state.state, "")),
            *(Text(printable(cell or "")) for cell in cells),
        )
    counts = Counter(state.state for state in states)
    summary = ", ".join(f"{counts[name]} {name}" for name in STATES if counts[name])
    return Group(rows, *([Text(printable(problem), "red")] if problem else []), summary)


def metric_text(state: RunState) -> str:
    """The last value of the run's metric in the metric's format; empty before the first evaluation."""
    return "" if state.value is None or state.metric is None else metric_of(state.metric).text(state.value)


def watch(sweep: Sweep, console: Console) -> None:
    """Shows the table, and updates it until no run is active any more."""
    states, problem = run_states(sweep)
    with Live(table(states, problem), console=console, auto_refresh=False) as live:
        while any(state.is_active for state in states):
            time.sleep(POLL_SECONDS)
            states, problem = run_states(sweep)
            live.update(table(states, problem), refresh=True)


def wait_for_end(sweep: Sweep) -> list[RunState]:
    """Waits until no run is active any more; returns the states then."""
    while True:
        states, problem = run_states(sweep)
        if problem is None and not any(state.is_active for state in states):
            return states
        time.sleep(POLL_SECONDS)


def follow(sweep: Sweep, name: str, log: Path) -> Iterator[str]:
    """The content of a run's log, then what is appended to it until the run is no longer active."""
    position, ended = 0, False
    while True:
        if log.exists():
            with log.open("rb") as file:
                file.seek(position)
                content = file.read()
            yield content.decode(errors="replace")
            position += len(content)
        if ended:
            return
        ended = not next(state for state in run_states(sweep)[0] if state.name == name).is_active
        time.sleep(POLL_SECONDS / 2)
