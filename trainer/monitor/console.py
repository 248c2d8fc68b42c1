"""A run in the terminal: a live display, or plain lines where the output goes to a file or a pipe."""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainer.formatting import clock_time, memory, percent
from trainer.metrics import metric_of
from trainer.monitor.base import SINKS, Level, Progress, RunInfo, Sink, Status

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
    """What both forms share: how far the run is, its pace, and its summary."""

    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.progress = Progress(run.resumed_step, epoch=0.0, seconds=0.0, fraction=0.0)
        self._began: tuple[float, float] | None = None  # time and fraction of the first tick

    def tick(self, progress: Progress) -> None:
        """Notes how far the run is, and from the first step on its pace."""
        self.progress = progress
        if self._began is None:
            self._began = (time.monotonic(), progress.fraction)

    def remaining(self) -> str:
        """The time to the end of the budget at this session's pace, evaluations included."""
        began, first = self._began or (0.0, 1.0)
        done = self.progress.fraction
        if done <= first:
            return "-"
        return clock_time((time.monotonic() - began) * max(1 - done, 0) / (done - first))

    def summary(self, status: Status, metrics: Mapping[str, float]) -> str:
        """How the run ended, in one line."""
        primary, progress = metric_of(self.run.primary), self.progress
        parts = [f"{primary.name} {primary.text(metrics[primary.name])}"] if primary.name in metrics else []
        if progress.best is not None:
            parts.append(f"best {primary.text(progress.best)} at step {progress.best_step}")
        parts.append(f"{progress.step} steps in {progress.seconds:.1f} s of training")
        return f"{status}: {', '.join(parts)}"

    def directory(self) -> str:
        """The path of the run directory, relative if it is below the working directory, quoted for a shell."""
        here, there = Path.cwd(), self.run.directory.absolute()
        return shlex.quote(str(there.relative_to(here) if there.is_relative_to(here) else there))

    def places(self) -> list[str]:
        """Lines that name the run directory and the command that shows the run."""
        has_events = any(self.run.directory.glob("events.out.tfevents.*"))
        command = [f"tensorboard --logdir {self.directory()}"] if has_events else []
        return [f"run directory: {self.directory()}", *command]


class LiveConsole(_Console):
    """A growing table of evaluations, and below it the latest numbers with a progress bar."""

    def __init__(self, run: RunInfo, terminal: Console) -> None:
        super().__init__(run)
        self._terminal = terminal
        self._heads: list[str] = []
        self._metrics: Mapping[str, float] = {}
        self._clock: Mapping[str, float] = {}
        self._live = Live(
            console=terminal, get_renderable=self._display, refresh_per_second=5, transient=True
        )

    def attach(self, monitors: Sink) -> None:
        """Says what is trained; a terminal that is gone already is no reason not to train."""
        self._say(Text.assemble((self.run.name, "bold cyan"), f"  {self.run.summary}"))
        self._say(Text(f"run directory: {self.directory()}", style="dim"))

    def tick(self, progress: Progress) -> None:
        """Starts the display with the first step."""
        super().tick(progress)
        if not self._live.is_started:
            self._live.start()

    def train(self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]) -> None:
        """Notes the numbers, which the display shows when it is refreshed."""
        self._metrics, self._clock = metrics, clock

    def evaluation(
        self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]
    ) -> None:
        """Adds a line to the table, with a star if it is the best so far."""
        self.progress = progress
        primary = self.run.primary
        if not self._heads:
            others = [name for name in metrics if name != primary]
            self._heads = ["epoch", "step", "train/loss", primary, *others]
            self._print(Text(f"\n  {row(self._heads, self._heads)}   ★ best so far", style="dim"))
        shown = texts({**self._metrics, **metrics})
        shown |= {"epoch": f"{progress.epoch:.2f}", "step": f"{progress.step:,}"}
        line = row(self._heads, [shown.get(head, "") for head in self._heads])
        if progress.is_best:
            self._print(Text(f"★ {line}", style="bold green"))
        else:
            self._print(Text(f"  {line}"))

    def message(self, text: str, level: Level = "info") -> None:
        """Prints a message above the display."""
        prefix = "" if level == "info" else f"{level}: "
        self._say(Text(prefix + text, style=LEVEL_STYLE[level]))

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """Ends the display and prints the summary."""
        self._live.stop()
        self._say(Text())
        self._say(Text(self.summary(status, metrics), style=f"bold {STATUS_STYLE[status]}"))
        for place in self.places():
            self._say(Text(f"  {place}"))

    def _say(self, line: Text) -> None:
        """Prints a sentence, wrapped."""
        self._terminal.print(line, soft_wrap=True)

    def _print(self, line: Text) -> None:
        """Prints a line of the table, cut off at the terminal's edge."""
        self._terminal.print(line, no_wrap=True, overflow="ellipsis")

    def _display(self) -> Group:
        """The latest numbers below their names, and the progress bar."""
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
        trained = {
            name: value for name, value in self._metrics.items() if name.startswith("train/") or name == "lr"
        }
        numbers |= {name.removeprefix("train/"): text for name, text in texts(trained).items()}
        if "samples_per_second" in self._clock:
            numbers["samples/s"] = f"{self._clock['samples_per_second']:,.0f}"
        if "mfu" in self._clock:
            numbers["MFU"] = percent(self._clock["mfu"])
        if "gpu_utilization" in self._clock:
            numbers["GPU"] = percent(self._clock["gpu_utilization"])
        if "memory_mib" in self._clock:
            numbers["memory"] = memory(self._clock["memory_mib"])
        return numbers

    def _budget(self) -> str:
        run, progress = self.run, self.progress
        if run.total_steps is not None:
            done = f"step {progress.step:,}/{run.total_steps:,}"
        else:
            done = f"{clock_time(progress.seconds)}/{clock_time(run.total_seconds or 0)}"
        return f"{progress.fraction:.0%}  {done}  ETA {self.remaining()}"


class PlainConsole(_Console):
    """One line per record, ``name=value`` in columns: for logs and for programs that parse them."""

    def __init__(self, run: RunInfo) -> None:
        super().__init__(run)
        self._printed = float("-inf")

    def attach(self, monitors: Sink) -> None:
        """Says what is trained; an output that is gone already is no reason not to train."""
        self.message(f"{self.run.name}: {self.run.summary}")
        self.message(f"run directory: {self.directory()}")

    def train(self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]) -> None:
        """Prints a line, at most once in `SECONDS_BETWEEN_LINES`."""
        if time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            self._print("train", progress, metrics, {**texts(clock), "eta": self.remaining()})

    def evaluation(
        self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]
    ) -> None:
        """Prints a line, which says whether it is the best so far."""
        self.progress = progress
        self._print("eval", progress, metrics, {"best": "yes" if progress.is_best else "no"})

    def message(self, text: str, level: Level = "info") -> None:
        """Prints a message."""
        print(text if level == "info" else f"{level}: {text}", flush=True)

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """Prints the summary."""
        print("\n".join([self.summary(status, metrics), *self.places()]), flush=True)

    def _print(
        self, kind: str, progress: Progress, metrics: Mapping[str, float], rest: dict[str, str]
    ) -> None:
        cells = {"step": str(progress.step), "epoch": f"{progress.epoch:.2f}"}
        cells |= {"seconds": f"{progress.seconds:.1f}"}
        cells |= texts(metrics) | rest
        line = "  ".join(f"{f'{name}={text}':<{len(name) + 8}}" for name, text in cells.items())
        print(f"{kind:<5}  {line}".rstrip(), flush=True)


def texts(metrics: Mapping[str, float]) -> dict[str, str]:
    """The values of metrics as a person reads them, by name."""
    return {name: metric_of(name).text(value) for name, value in metrics.items()}


def row(heads: Sequence[str], cells: Sequence[str]) -> str:
    """A line of a table: cells right-aligned below their heads."""
    return "  ".join(f"{cell:>{max(len(head), 8)}}" for head, cell in zip(heads, cells, strict=True))
