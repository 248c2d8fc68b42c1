"""run.log: the messages and evaluations of a run, with the time of day."""

from collections.abc import Mapping
from datetime import datetime

from trainer.monitor.base import SINKS, Level, Progress, RunInfo, Sink, Status


@SINKS.register("runlog")
class RunLog(Sink):
    """Appends messages and evaluations to run.log, in the same file after each restart."""

    def __init__(self, run: RunInfo) -> None:
        self._file = open(  # noqa: SIM115 (open for the whole run)
            run.directory / "run.log", "a", buffering=1, encoding="utf-8", errors="backslashreplace"
        )
        self.message(run.summary)

    def evaluation(
        self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]
    ) -> None:
        """Writes a line with six digits of each metric."""
        values = "  ".join(f"{name}={value:.6g}" for name, value in metrics.items())
        self.message(f"step {progress.step}  epoch {progress.epoch:.2f}  {progress.seconds:.1f} s  {values}")

    def scalars(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Writes a line with six digits of each number."""
        numbers = "  ".join(f"{name}={value:.6g}" for name, value in values.items())
        self.message(f"step {progress.step}  {numbers}")

    def message(self, text: str, level: Level = "info") -> None:
        """Writes a line with time and level."""
        self._file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {level:<7} {text}\n")

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """Writes the status and closes the file."""
        self.message(status)
        self._file.close()
