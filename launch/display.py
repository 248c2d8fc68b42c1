"""Standings as tables and JSON, and the logs of a run."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from launch.run_states import STATES, RunState, run_states
from launch.sweep_dir import Sweep
from trainer.metrics import metric_of

SECONDS = 2.0
"""Between two looks at the queue."""

COLORS = {"finished": "green", "failed": "red", "lost": "red", "running": "cyan", "preempted": "yellow"}


def table(rows: Sequence[RunState], trouble: str | None) -> RenderableType:
    metrics = {row.metric for row in rows if row.metric}
    metric = metrics.pop() if len(metrics) == 1 else "metric"
    state = Column("state", no_wrap=True, min_width=9)
    shown = Table("run", state, "job", "by Slurm", "step", metric, "restarts", "reason")
    for row in rows:
        shown.add_row(
            row.name,
            Text(row.state, COLORS.get(row.state, "")),
            row.job,
            row.slurm,
            "" if row.step is None else str(row.step),
            metric_of(row.metric).text(row.value) if row.metric and row.value is not None else "",
            str(row.restarts),
            row.reason,
        )
    counts = Counter(row.state for row in rows)
    summary = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return Group(shown, *([Text(trouble, "red")] if trouble else []), summary)


def watch(sweep: Sweep, console: Console) -> list[RunState]:
    """Shows the table, and while runs are under way again and again; returns the last run_states."""
    rows, trouble = run_states(sweep)
    with Live(table(rows, trouble), console=console, auto_refresh=False) as live:
        while any(row.under_way for row in rows):
            time.sleep(SECONDS)
            rows, trouble = run_states(sweep)
            live.update(table(rows, trouble), refresh=True)
    return rows


def wait(sweep: Sweep) -> list[RunState]:
    """Waits until no run is under way; returns the last run_states."""
    while True:
        rows, _ = run_states(sweep)
        if not any(row.under_way or row.state == "unknown" for row in rows):
            return rows
        time.sleep(SECONDS)


def follow(sweep: Sweep, name: str, log: Path) -> Iterator[str]:
    """A log's content, and what is added to it until the run is no longer under way."""
    place, ended = 0, False
    while True:
        if log.exists():
            with log.open("rb") as file:
                file.seek(place)
                content = file.read()
            yield content.decode(errors="replace")
            place += len(content)
        if ended:
            return
        ended = not next(row for row in run_states(sweep)[0] if row.name == name).under_way
        time.sleep(SECONDS / 2)
