"""Runs one after another, each in a process of its own, so that none profits from what another has warmed up."""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.metrics import value
from trainer.registry import import_plugin
from trainer.report.read_runs import RecordedRun, read_run
from trainer.rundir.status import FINISHED, INTERRUPTED, PREEMPTED, USER_ERROR, read_status
from trainer.signals import StopSignal, signals_blocked

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["trainer.cli.train", "torch._dynamo"]
)  # which every optimizer of torch's imports

LOG = "output.log"
"""What the processes print, in the comparison's folder."""

LEAVE_SECONDS = 30.0
"""How long the process of a run may live on after it has written how the run ended."""


class Interrupted(Exception):
    """A signal ended the comparison between two runs or, with a checkpoint, in one."""


@dataclass(frozen=True)
class PlannedRun:
    """A run whose config is frozen in its directory."""

    path: Path
    label: str
    seconds: float | None
    """Its budget, as far as that is known."""


class Runner:
    """Within its context a bar shows how far all runs are, and a signal is passed on to the run under way.

    Args:
        folder: of the comparison.
        console: for the bar and a line for each run.
        total: of the runs.
    """

    def __init__(self, folder: Path, console: Console, total: int) -> None:
        self.log = folder / LOG
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.bar = self.progress.add_task("", total=total)
        self.done = 0
        self.stop = StopSignal()

    def __enter__(self) -> "Runner":
        self.stop.__enter__()
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        self.stop.__exit__(kind, error, trace)

    def check(self, configs: Sequence[Config]) -> None:
        """Builds each run without training it.

        Raises:
            UserError: one cannot be built.
        """
        self.progress.update(self.bar, description="checking")
        with tempfile.NamedTemporaryFile() as log:
            self._wait(build_all, list(configs), Path(log.name))

    def run(self, jobs: Sequence[PlannedRun], what: str) -> list[RecordedRun]:
        """Trains those that have not ended yet, from where they stopped.

        A run that fails is one of the results; to have it tried again, remove its directory.

        Raises:
            UserError: a run cannot be started.
            Interrupted: by a signal.
        """
        for job in jobs:
            if not has_ended(read_status(job.path)):
                self.progress.update(self.bar, description=f"{what}: {job.label}")
                self._wait(train, job.path, self.log, job)
                self._tell(what, job)
            self.done += 1
            self.progress.update(self.bar, completed=self.done)
        return [read_run(job.path) for job in jobs]

    def _tell(self, what: str, job: PlannedRun) -> None:
        """Prints a line on a run that has ended."""
        run, status = read_run(job.path), read_status(job.path)
        if run.state == "finished":
            primary = status["primary"]
            end = f"{primary} {value(primary, status['metrics'][primary])}, {run.step} steps"
        else:
            end = f"{run.state}: {run.error or f'see {self.log}'}"
        self._say(f"{what}: {job.label}: {end}")

    def _say(self, line: str) -> None:
        self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _wait(
        self, target: Callable[..., None], argument: Any, log: Path, job: PlannedRun | None = None
    ) -> None:
        """Calls a function in a new process, which writes what it has to say to a log.

        Args:
            job: the run that it trains, if it trains one.
        """
        if self.stop.received is not None:
            raise Interrupted
        before = log.stat().st_size if log.exists() else 0
        process = FORKS.Process(target=target, args=(argument, log))
        resource_tracker.ensure_running()  # as it starts, it unblocks signals
        with signals_blocked():
            process.start()
        passed_on, began = False, time.monotonic()
        while process.is_alive():
            process.join(0.2)
            if job and job.seconds is not None:
                share = min(0.99, (time.monotonic() - began) / job.seconds)
                self.progress.update(self.bar, completed=self.done + share)
            if job and lingers(job.path, process.pid) and process.is_alive():
                process.kill()
                process.join()
                self._say(f"{job.label}: its process was killed {LEAVE_SECONDS:g} s after the run had ended")
            if self.stop.received is not None and not passed_on:
                passed_on = True
                process.terminate()  # SIGTERM, on which a run writes a checkpoint
        if process.exitcode == USER_ERROR:
            raise UserError(last_error(log, before))
        stopped = job is not None and read_status(job.path).get("state") == "preempted"
        if self.stop.received is not None or stopped or process.exitcode in (PREEMPTED, INTERRUPTED):
            raise Interrupted


def has_ended(status: Mapping[str, Any]) -> bool:
    """Whether a run has a result; one that was interrupted at once, without a checkpoint, says that it failed."""
    state, error = status.get("state"), str(status.get("error"))
    return state == "finished" or (state == "failed" and not error.startswith("KeyboardInterrupt"))


def lingers(run: Path, pid: int | None) -> bool:
    """Whether a process is still there long after it has written how its run ended."""
    status = read_status(run)
    over = status.get("pid") == pid and status.get("state") in ("finished", "failed", "preempted")
    return over and time.time() - status["time"] > LEAVE_SECONDS


def train(path: Path, log: Path) -> None:
    """What the process of a run does: the same as the command that goes on with it."""
    from trainer.cli.train import main  # it has Hydra's command line in it

    redirect(log)
    multiprocessing.set_start_method(None, force=True)  # data workers need no fork server of their own
    sys.exit(main(["--config-path", str(path), "--config-name", "config"]))


def build_all(configs: Sequence[Config], log: Path) -> None:
    from trainer.training.build import build

    redirect(log)
    try:
        for config in configs:
            for module in config.plugins:
                import_plugin(module)
            build(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    sys.exit(FINISHED)


def last_error(log: Path, start: int) -> str:
    """The last error message in a file from this byte on."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"see {log}"


def redirect(log: Path) -> None:
    """Sends all that this process prints to the end of a file."""
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
