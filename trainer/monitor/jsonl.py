"""A run's numbers as files of JSON, one record a line.

``metrics.jsonl`` holds what is the same on every execution of the run; a run that is killed and resumed
leaves the same bytes as one that was not interrupted::

    {"kind": "train", "step": 50, "epoch": 0.5, "train/loss": 0.31, "lr": 0.001, "grad_norm": 1.2}
    {"kind": "curvature", "step": 60, "epoch": 0.6, "layers": {"conv1": {"share": 0.27}}}
    {"kind": "scalars", "step": 60, "epoch": 0.6, "update_ratio/conv1.weight": 0.002}
    {"kind": "evaluation", "step": 100, "epoch": 1.0, "test/loss": 0.25, "test/accuracy": 0.92}

``clock.jsonl`` holds what differs: for the same train and evaluation records ``seconds`` (of training, summed
over restarts), ``samples_per_second``, ``data_wait``, ``flops_per_second``, ``mfu``, ``memory_mib``, of a GPU
``gpu_utilization``, ``gpu_watts`` and ``gpu_memory_mib``, and the shares of a step's parts under ``profile=parts``.

JSON has no numbers that are not finite: nan and the infinities are null. The last entry of a line is its ``checksum``:
the CRC-32 of the bytes before it.
"""

import errno
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.monitor.base import SINKS, Progress, RunInfo, Sink, Status
from trainer.rundir.files import sealed_line


@SINKS.register("jsonl")
class Jsonl(Sink):
    """Writes metrics.jsonl and clock.jsonl."""

    def __init__(self, run: RunInfo) -> None:
        self._files = {name: Lines(run.directory / f"{name}.jsonl") for name in ("metrics", "clock")}
        self._monitors = Sink(run)  # until it is attached
        if not run.resumed_step:
            self.load_state_dict(dict.fromkeys(self._files, 0))

    def attach(self, monitors: Sink) -> None:
        """Takes the sinks to which it reports what it finds at a resume."""
        self._monitors = monitors

    def train(self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]) -> None:
        """Writes a record of kind "train"."""
        self._write("train", progress, metrics, clock)

    def evaluation(
        self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]
    ) -> None:
        """Writes a record of kind "evaluation"."""
        self._write("evaluation", progress, metrics, clock)

    def curvature(self, progress: Progress, layers: Mapping[str, Mapping[str, float]]) -> None:
        """Writes a record of kind "curvature", to metrics.jsonl alone."""
        place = {"kind": "curvature", "step": progress.step, "epoch": progress.epoch}
        self._files["metrics"].write({**place, "layers": layers})

    def scalars(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Writes a record of kind "scalars", to metrics.jsonl alone."""
        place = {"kind": "scalars", "step": progress.step, "epoch": progress.epoch}
        self._files["metrics"].write({**place, **values})

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()

    def state_dict(self) -> dict[str, Any]:
        """The length of each file in bytes, and the checksum of metrics.jsonl."""
        lengths = {name: file.sync() for name, file in self._files.items()}
        return {**lengths, "metrics_checksum": self._files["metrics"].checksum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cuts each file back to its length, and says so if the metrics are not those that were written."""
        for name, file in self._files.items():
            file.truncate(state[name])
        if self._files["metrics"].checksum != state.get("metrics_checksum", 0):
            self._monitors.message(
                "metrics.jsonl has changed since the checkpoint: it may be damaged", "warning"
            )

    def _write(
        self, kind: str, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]
    ) -> None:
        place = {"kind": kind, "step": progress.step}
        self._files["metrics"].write({**place, "epoch": progress.epoch, **metrics})
        self._files["clock"].write({**place, "seconds": progress.seconds, **clock})


class Lines:
    """A file of JSON records, one a line, that can be cut back to an earlier length."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 (open for the whole run)
        self.checksum = 0
        """Of the file, since it was last cut back."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends the record in one system call, so that a concurrent reader sees complete lines.

        Raises:
            OSError: the disk is full; nothing of the record is left, so that later ones are lines of their own.
        """
        line = sealed_line(record)
        written = self._file.write(line)
        if written < len(line):
            self._file.truncate(self._file.seek(0, os.SEEK_END) - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.checksum = zlib.crc32(line, self.checksum)

    def sync(self) -> int:
        """The file's length in bytes, all of them on disk."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def truncate(self, length: int) -> None:
        """Removes what was written after the file had this length; a shorter file stays as it is."""
        size = self._file.seek(0, os.SEEK_END)
        if length < size:
            self._file.truncate(length)
        self._file.seek(0)
        self.checksum = zlib.crc32(self._file.read(min(length, size)))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
