"""A trace of a few steps: what the processor and the accelerator did when."""

from collections.abc import Mapping

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from trainer.monitor.base import Progress, RunInfo, Sink, Status

WARM_UP = 2
"""Steps that run under the profiler before it records. The session's first step runs without it."""
ROWS = 25


class Profile(Sink):
    """Records a few steps for ``profile=true``; tells others where the trace is and what took longest.

    The steps that it watches take longer, and count as training time as they are. A run that ends meanwhile
    leaves a trace of the steps that were recorded.

    Args:
        run: the trace goes to ``profile/`` in its directory.
        steps: to record.
        parent: hears of it; its sinks are closed after this one.
    """

    def __init__(self, run: RunInfo, steps: int, parent: Sink) -> None:
        self.folder = run.directory / "profile"
        self.steps = steps
        self.parent = parent
        self._progress = Progress(run.resumed_step, epoch=0.0, seconds=0.0, fraction=0.0)
        self._first = run.resumed_step + 1 + WARM_UP + 1
        self._profile: profile | None = None
        self._ended = False

    def tick(self, progress: Progress) -> None:
        self._progress = progress
        if self._profile is not None:
            self._profile.step()
            if progress.step == self._first + self.steps - 1:
                self._end()
        elif not self._ended:
            self._profile = self._begin()

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        last = self._progress.step
        self._end()
        if last < self._first:
            self.parent.message(f"no profile: step {self._first} is the first that is recorded", "warning")

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
        self.parent.message(
            f"profile of {steps}: {path}; open it at https://ui.perfetto.dev or chrome://tracing"
        )
        order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        self.parent.text(
            self._progress, f"profile/{steps}", recorded.key_averages().table(sort_by=order, row_limit=ROWS)
        )
