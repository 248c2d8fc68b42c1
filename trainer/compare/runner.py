"""Executes runs one after another, each in a process of its own, so that none profits from the warm-up of another."""

import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing import resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trainer.compare.planning import PlannedRun
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.metrics import metric_of
from trainer.registry import import_plugin
from trainer.report.read_runs import RecordedRun, read_run
from trainer.rundir.frozen_config import arguments, plugins_of
from trainer.rundir.logs import last_error, last_lines
from trainer.rundir.status import (
    CRASHED,
    FINISHED,
    INTERRUPTED,
    PREEMPTED,
    USER_ERROR,
    change_state,
    read_status,
)
from trainer.signals import StopSignal, signals_blocked

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["trainer.cli.train", "torch._dynamo"]
)  # every optimizer of torch's imports the latter

LOG = "output.log"
"""The output of all processes, in the comparison's folder."""

LEAVE_SECONDS = 30.0
"""How long the process of a run may live on after it has written how the run ended."""


WhyPruned = Callable[[], str | None]


class Interrupted(Exception):
    """A signal ended the comparison between two runs or, with a checkpoint, in one."""


class Runner:
    """Executes runs. Within its context a bar shows their progress, and a signal is passed on to the current run.

    Args:
        folder: of the comparison.
        console: for the bar and a line for each run.
        total: number of all runs.
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

    def run(
        self,
        planned: Sequence[PlannedRun],
        what: str,
        verdict: WhyPruned = lambda: None,
        *,
        must_finish: bool = False,
    ) -> list[RecordedRun]:
        """Trains those that have not ended yet, from where they stopped; returns all of them in this order.

        A run that fails is a result too; to repeat it, remove its directory.

        Args:
            planned: the runs.
            what: part of the comparison they are.
            verdict: asked again and again why a run is pruned, which ends it with a checkpoint; None: it is not.
            must_finish: go on with one that has failed before.

        Raises:
            UserError: a run cannot be started.
            Interrupted: by a signal.
        """
        for each in planned:
            status = read_status(each.path)
            ended = status.get("state") == "finished" if must_finish else has_ended(status)
            if not ended and verdict() is None:
                self.progress.update(self.bar, description=f"{what}: {each.label}")
                self._train(each, verdict)
            if reason := verdict():
                change_state(each.path, "pruned", reason)
            if not ended:
                self._print_result(what, each)
            self.done += 1
            self.progress.update(self.bar, completed=self.done)
        return [read_run(each.path) for each in planned]

    def _train(self, planned: PlannedRun, verdict: WhyPruned) -> None:
        """Trains a run, which fails like any other if it is its tuned options that do not fit each other."""
        try:
            self._wait(train, planned.path, self.log, planned, verdict)
        except UserError as error:
            if not self._builds(planned.untuned) or self._builds(planned.config):
                raise
            change_state(planned.path, "failed", str(error))

    def _builds(self, config: Config) -> bool:
        try:
            self.check([config])
        except UserError:
            return False
        return True

    def _print_result(self, what: str, planned: PlannedRun) -> None:
        """Prints a line on a run that has ended."""
        run, status = read_run(planned.path), read_status(planned.path)
        if run.state == "finished":
            primary = metric_of(str(status.get("primary")))
            value = status.get("metrics", {}).get(primary.name, math.nan)
            result = f"{primary.name} {primary.text(value)}, {run.step} steps"
        else:
            result = f"{run.state}: {run.error or f'see {self.log}'}"
        self._print(f"{what}: {planned.label}: {result}")

    def _print(self, line: str) -> None:
        self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def pause(self, seconds: float) -> None:
        """Does nothing for a while.

        Raises:
            Interrupted: by a signal.
        """
        time.sleep(seconds)
        if self.stop.received is not None:
            raise Interrupted

    def _wait(
        self,
        target: Callable[..., None],
        argument: Any,
        log: Path,
        planned: PlannedRun | None = None,
        verdict: WhyPruned = lambda: None,
    ) -> None:
        """Calls a function in a new process, whose output goes to the end of a log, and waits for it to end.

        Args:
            target: the function, called with ``argument`` and ``log``.
            argument: must be picklable.
            log: created if it does not exist.
            planned: the run that it trains, if it trains one.
            verdict: as in `run`.
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
            if planned and planned.seconds is not None:
                share = min(0.99, (time.monotonic() - began) / planned.seconds)
                self.progress.update(self.bar, completed=self.done + share)
            if planned and lingers(planned.path, process.pid) and process.is_alive():
                process.kill()
                process.join()
                self._print(
                    f"{planned.label}: its process was killed {LEAVE_SECONDS:g} s after the run had ended"
                )
            if not passed_on and (self.stop.received is not None or verdict() is not None):
                passed_on = True
                process.terminate()  # SIGTERM, on which a run writes a checkpoint
        status = read_status(planned.path) if planned else {}
        is_its_own = status.get("pid") == process.pid  # not that of an earlier start
        if process.exitcode == USER_ERROR or (process.exitcode == CRASHED and not is_its_own):
            lines = last_lines(log, before)
            raise UserError(last_error(lines) or (lines or [f"see {log}"])[-1])
        if self.stop.received is None and verdict() is not None:
            return
        stopped = is_its_own and status.get("state") == "preempted"
        if self.stop.received is not None or stopped or process.exitcode in (PREEMPTED, INTERRUPTED):
            raise Interrupted


def has_ended(status: Mapping[str, Any]) -> bool:
    """Whether a run has a result; one that was interrupted without a checkpoint has none, though it is "failed"."""
    state, error = status.get("state"), str(status.get("error"))
    return state in ("finished", "pruned") or (
        state == "failed" and not error.startswith("KeyboardInterrupt")
    )


def lingers(run: Path, pid: int | None) -> bool:
    """Whether a process is still there long after it has written how its run ended."""
    status = read_status(run)
    over = status.get("pid") == pid and status.get("state") in ("finished", "failed", "preempted")
    return over and time.time() - status.get("time", math.inf) > LEAVE_SECONDS


def train(path: Path, log: Path) -> None:
    """The body of a run's process: the same as the command that continues the run."""
    from trainer.cli.train import main  # it has Hydra's command line in it

    redirect(log)
    end_with_comparison()
    multiprocessing.set_start_method(None, force=True)  # data workers need no fork server of their own
    sys.exit(main(arguments(path, plugins_of(path))))


def end_with_comparison() -> None:
    """Has this process killed when that of the comparison was: the next one needs the run's directory."""
    comparison = multiprocessing.parent_process()
    assert comparison is not None

    def wait() -> None:
        comparison.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="comparison", daemon=True).start()


def build_all(configs: Sequence[Config], log: Path) -> None:
    """The body of the process that builds every config; exits with USER_ERROR if one cannot be built."""
    from trainer.training.build import build

    redirect(log)
    try:
        for config in configs:
            for module in config.plugins:
                import_plugin(module)
            if config.loop.accumulate == "auto":  # nothing is trained that would need memory
                config = replace(config, loop=replace(config.loop, accumulate=1))
            build(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    sys.exit(FINISHED)


def redirect(log: Path) -> None:
    """Sends all output of this process to the end of a file."""
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
