"""A run in the terminal: a live display, or plain lines where the output goes to a file or a pipe."""

import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainer.metrics import duration, memory, row, value
from trainer.monitor.base import SINKS, Best, Level, Progress, RunInfo, Sink, Status

LEVEL_STYLE: dict[Level, str] = {"info": "", "warning": "yellow", "error": "red"}
STATUS_STYLE: dict[Status, str] = {"finished": "green", "preempted": "yellow", "failed": "red"}
SECONDS_BETWEEN_LINES = 1.0


@SINKS.register("console")
def console(run: RunInfo) -> Sink:
    """The live display on a terminal that can show it, else plain lines."""
    terminal = Console()
    if sys.stdout.isatty() and not terminal.is_dumb_terminal and terminal.encoding.startswith("utf"):
        return LiveConsole(run, terminal)
    return PlainConsole(run)


class _Console(Sink):
    """What both forms know: how far the run is, at what pace, and its best evaluation."""

    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.progress = Progress(run.resumed_step, epoch=0.0, seconds=0.0, fraction=0.0)
        self.best = Best(run.primary)
        self._began: tuple[float, float] | None = None  # time and fraction of the first tick

    def tick(self, progress: Progress) -> None:
        self.progress = progress
        if self._began is None:
            self._began = (time.monotonic(), progress.fraction)

    def state_dict(self) -> dict[str, Any]:
        return self.best.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best.load_state_dict(state)

    def remaining(self) -> str:
        """The time to the end of the budget at this session's pace, evaluations included."""
        began, first = self._began or (0.0, 1.0)
        done = self.progress.fraction
        if done <= first:
            return "-"
        return duration((time.monotonic() - began) * max(1 - done, 0) / (done - first))

    def summary(self, status: Status, metrics: Mapping[str, float]) -> str:
        """How the run ended, in one line."""
        primary = self.run.primary
        parts = [f"{primary} {value(primary, metrics[primary])}"] if primary in metrics else []
        if self.best.value is not None:
            parts.append(f"best {value(primary, self.best.value)} at step {self.best.step}")
        parts.append(f"{self.progress.step} steps in {self.progress.seconds:.1f} s of training")
        return f"{status}: {', '.join(parts)}"

    def directory(self) -> str:
        """The run directory as a person in the working directory would write it."""
        here, there = Path.cwd(), self.run.directory.absolute()
        return shlex.quote(str(there.relative_to(here) if there.is_relative_to(here) else there))

    def places(self) -> list[str]:
        """Where the run lies, and the command that shows it."""
        has_events = any(self.run.directory.glob("events.out.tfevents.*"))
        command = [f"tensorboard --logdir {self.directory()}"] if has_events else []
        return [f"run directory: {self.directory()}", *command]


class LiveConsole(_Console):
    """The latest numbers and a progress bar below a table of evaluations that grows line by line."""

    def __init__(self, run: RunInfo, terminal: Console) -> None:
        super().__init__(run)
        self._terminal = terminal
        self._heads: list[str] = []
        self._metrics: Mapping[str, float] = {}
        self._clock: Mapping[str, float] = {}
        self._live = Live(
            console=terminal, get_renderable=self._display, refresh_per_second=5, transient=True
        )
        self._say(Text.assemble((run.name, "bold cyan"), f"  {run.summary}"))
        self._say(Text(f"run directory: {self.directory()}", style="dim"))

    def tick(self, progress: Progress) -> None:
        super().tick(progress)
        if not self._live.is_started:
            self._live.start()

    def train(self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]) -> None:
        self._metrics, self._clock = metrics, clock

    def evaluation(
        self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]
    ) -> None:
        primary = self.run.primary
        if not self._heads:
            others = [name for name in metrics if name != primary]
            self._heads = ["epoch", "step", "train/loss", primary, *others]
            self._print(Text(f"\n  {row(self._heads, self._heads)}   ★ best so far", style="dim"))
        shown = {name: value(name, number) for name, number in {**self._metrics, **metrics}.items()}
        shown |= {"epoch": f"{progress.epoch:.2f}", "step": f"{progress.step:,}"}
        line = row(self._heads, [shown.get(head, "") for head in self._heads])
        if self.best.update(progress.step, metrics):
            self._print(Text(f"★ {line}", style="bold green"))
        else:
            self._print(Text(f"  {line}"))

    def message(self, text: str, level: Level = "info") -> None:
        prefix = "" if level == "info" else f"{level}: "
        self._say(Text(prefix + text, style=LEVEL_STYLE[level]))

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        self._live.stop()
        self._say(Text())
        self._say(Text(self.summary(status, metrics), style=f"bold {STATUS_STYLE[status]}"))
        for place in self.places():
            self._say(Text(f"  {place}"))

    def _say(self, line: Text) -> None:
        """Prints a sentence, however long."""
        self._terminal.print(line, soft_wrap=True)

    def _print(self, line: Text) -> None:
        """Prints a line of the table, cut off at the terminal's edge."""
        self._terminal.print(line, no_wrap=True, overflow="ellipsis")

    def _display(self) -> Group:
        """A table of the latest numbers with their names, then the bar."""
        numbers = Table(box=None, padding=(0, 1), header_style="dim", style="bold")
        cells = self._numbers()
        for name in cells:
            numbers.add_column(name, justify="right", min_width=9, no_wrap=True)
        numbers.add_row(*cells.values())
        bar = Table.grid(expand=True, padding=(0, 2))
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        bar.add_row(ProgressBar(total=1.0, completed=self.progress.fraction), self._budget())
        return Group("", numbers, bar)

    def _numbers(self) -> dict[str, str]:
        numbers = {"epoch": f"{self.progress.epoch:.2f}"}
        for name in ("train/loss", "train/accuracy", "train/perplexity", "lr"):
            if name in self._metrics:
                numbers[name.removeprefix("train/")] = value(name, self._metrics[name])
        if "samples_per_second" in self._clock:
            numbers["samples/s"] = f"{self._clock['samples_per_second']:,.0f}"
        if "memory_mib" in self._clock:
            numbers["memory"] = memory(self._clock["memory_mib"])
        return numbers

    def _budget(self) -> str:
        run, progress = self.run, self.progress
        if run.total_steps is not None:
            done = f"step {progress.step:,}/{run.total_steps:,}"
        else:
            done = f"{duration(progress.seconds)}/{duration(run.total_seconds or 0)}"
        return f"{progress.fraction:.0%}  {done}  ETA {self.remaining()}"


class PlainConsole(_Console):
    """One line a record, ``name=value`` in columns: for logs, and for whoever parses them."""

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self._printed = float("-inf")
        self.message(f"{run.name}: {run.summary}")
        self.message(f"run directory: {self.directory()}")

    def train(self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]) -> None:
        if time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            speed = {name: f"{number:.0f}" for name, number in clock.items()}
            self._print("train", progress, metrics, {**speed, "eta": self.remaining()})

    def evaluation(
        self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]
    ) -> None:
        best = {"best": "yes" if self.best.update(progress.step, metrics) else "no"}
        self._print("eval", progress, metrics, best)

    def message(self, text: str, level: Level = "info") -> None:
        print(text if level == "info" else f"{level}: {text}", flush=True)

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        print("\n".join([self.summary(status, metrics), *self.places()]), flush=True)

    def _print(
        self, kind: str, progress: Progress, metrics: Mapping[str, float], rest: dict[str, str]
    ) -> None:
        cells = {"step": str(progress.step), "epoch": f"{progress.epoch:.2f}"}
        cells |= {"seconds": f"{progress.seconds:.1f}"}
        cells |= {name: value(name, number) for name, number in metrics.items()} | rest
        line = "  ".join(f"{f'{name}={text}':<{len(name) + 8}}" for name, text in cells.items())
        print(f"{kind:<5}  {line}".rstrip(), flush=True)
