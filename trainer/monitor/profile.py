"""A trace of a few steps: when the CPU and the GPU did what."""

from collections.abc import Mapping

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from trainer.monitor.base import Progress, RunInfo, Sink, Status

WARM_UP = 2
"""Steps that run under the profiler before it records. The session's first step runs without it."""
ROWS = 25


class Profile(Sink):
    """Records a few steps for ``profile=true``; reports to all sinks where the trace is and what took longest.

    Recorded steps take longer, and count as training time all the same. A run that ends before the last of them
    leaves a trace of those until then. This sink comes before those to which it reports, which close after it.

    Args:
        run: the trace goes to ``profile/`` in its directory.
        steps: how many to record.
    """

    def __init__(self, run: RunInfo, steps: int) -> None:
        self.folder = run.directory / "profile"
        self.steps = steps
        self._monitors = Sink(run)  # until it is attached
        self._progress = Progress(run.resumed_step, epoch=0.0, seconds=0.0, fraction=0.0)
        self._first = run.resumed_step + 1 + WARM_UP + 1
        self._profile: profile | None = None
        self._ended = False

    def attach(self, monitors: Sink) -> None:
        """Takes the sinks to which it reports."""
        self._monitors = monitors

    def tick(self, progress: Progress) -> None:
        """Starts the profiler after the session's first step, and ends it after the last one to be recorded."""
        self._progress = progress
        if self._profile is not None:
            self._profile.step()
            if progress.step == self._first + self.steps - 1:
                self._end()
        elif not self._ended:
            self._profile = self._begin()

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """Writes what was recorded, if the run ends before the last step to be recorded."""
        last = self._progress.step
        self._end()
        if last < self._first:
            self._monitors.message(
                f"no profile: step {self._first} would have been the first recorded one", "warning"
            )

    def _begin(self) -> profile:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        began = profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=WARM_UP, active=self.steps, repeat=1),
            on_trace_ready=self._write,
        )
        began.start()
        return began

    def _end(self) -> None:
        if self._profile is not None:
            self._profile.stop()
        self._profile, self._ended = None, True

    def _write(self, recorded: profile) -> None:
        if self._progress.step < self._first:
            return
        steps = f"steps {self._first} to {self._progress.step}"
        path = self.folder / f"{steps.replace(' ', '_')}.json.gz"
        self.folder.mkdir(exist_ok=True)
        recorded.export_chrome_trace(str(path))
        self._monitors.message(
            f"profile of {steps}: {path}; open it at https://ui.perfetto.dev or chrome://tracing"
        )
        order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        self._monitors.text(
            self._progress, f"profile/{steps}", recorded.key_averages().table(sort_by=order, row_limit=ROWS)
        )
