"""TensorBoard: curves against steps and against training seconds, curvature, images, and runs compared.

A tag ``test/loss`` has optimizer steps on its axis; ``by_seconds/test/loss`` has training seconds, rounded down
(evaluation excluded, summed over restarts): the fair comparison of optimizers whose steps differ in cost.
TensorBoard's own "relative" axis includes evaluation and downtime, and starts every curve at its first point.
Of several values within a second the last one is shown.

Because two units share the axis, a resumed run cannot have TensorBoard purge what came after the checkpoint:
``purge_step`` is one number for all tags. Instead the run truncates its event files to their length at the checkpoint.

There is no Experiment record for the HPARAMS page: without one TensorBoard takes the union of all runs'
options as its columns, so that runs of different optimizers compare.
"""

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import OmegaConf
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2  # type: ignore[import-untyped]
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from trainer._private import _AsyncWriterThread, event_file_writer
from trainer.metrics import STEP_PARTS
from trainer.monitor.base import SINKS, Progress, RunInfo, Sink, Status
from trainer.monitor.pictures import grid, predicted_grid
from trainer.options import flatten

COMPARED = ("seed", "model", "data", "optimizer", "schedule")
"""Keys of the config that the HPARAMS page shows."""


@SINKS.register("tensorboard")
class TensorBoard(Sink):
    """Writes event files into the run directory."""

    def __init__(self, run: RunInfo) -> None:
        self._directory = run.directory
        self._earlier = event_files(run.directory)
        if not run.resumed_step:
            self._truncate({})
        self._writer = SummaryWriter(str(run.directory), flush_secs=10)
        self._writer.add_text("summary", run.summary, run.resumed_step)
        yaml = OmegaConf.to_yaml(OmegaConf.create(dict(run.config)))
        self._writer.add_text("config", f"```yaml\n{yaml}```", run.resumed_step)
        self._writer.add_custom_scalars(layout(run.primary))
        self._add(session_start(run.config))

    def train(self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]) -> None:
        """Adds the metrics against steps and seconds, and the clock's numbers under ``speed/``."""
        self._scalars(progress, metrics, {f"speed/{name}": number for name, number in clock.items()})

    def evaluation(
        self, progress: Progress, metrics: Mapping[str, float], clock: Mapping[str, float]
    ) -> None:
        """Adds the metrics against steps and seconds, and under ``best/`` those of each new best evaluation."""
        self._scalars(progress, metrics, {})
        if progress.is_best:
            self._add(scalars({f"best/{name}": number for name, number in metrics.items()}), progress.step)

    def curvature(self, progress: Progress, layers: Mapping[str, Mapping[str, float]]) -> None:
        """Adds each number by layer, and its least, median and largest over the layers."""
        values: dict[str, float] = {}
        for key in sorted({key for layer in layers.values() for key in layer}):
            by_layer = {name: layer[key] for name, layer in layers.items() if key in layer}
            values |= {f"curvature/{key}/{name}": number for name, number in by_layer.items()}
            over = f"curvature/{key}_over_layers"
            numbers = list(by_layer.values())
            values |= {f"{over}/min": min(numbers), f"{over}/max": max(numbers)}
            values |= {f"{over}/median": median(numbers)}
        self._add(scalars(values), progress.step)

    def scalars(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Adds them against steps."""
        self._add(scalars(values), progress.step)

    def images(self, progress: Progress, tag: str, images: Tensor) -> None:
        """Adds the first images side by side."""
        self._writer.add_image(tag, grid(images), progress.step)

    def predictions(
        self, progress: Progress, tag: str, images: Tensor, predicted: Tensor, targets: Tensor
    ) -> None:
        """Adds the images, each below its predicted class."""
        self._writer.add_image(tag, predicted_grid(images, predicted, targets), progress.step)

    def text(self, progress: Progress, tag: str, text: str) -> None:
        """Adds the text verbatim."""
        self._writer.add_text(tag, verbatim(text), progress.step)

    def histograms(self, progress: Progress, parameters: Mapping[str, Tensor]) -> None:
        """Adds a histogram of each parameter's finite values."""
        for name, parameter in parameters.items():
            values = parameter.detach().float()
            values = values[values.isfinite()]
            if values.numel():
                self._writer.add_histogram(f"parameters/{name}", values, progress.step)

    def finish(self, status: Status, metrics: Mapping[str, float]) -> None:
        """Records how the run ended, and closes the files."""
        self._add(session_end(status))
        self._writer.close()

    def state_dict(self) -> dict[str, Any]:
        """The length of each event file in bytes, all of them on disk."""
        self._writer.flush()
        return {path.name: path.stat().st_size for path in event_files(self._directory)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cuts the event files of earlier sessions back to the checkpoint."""
        self._truncate(state)

    def _truncate(self, lengths: Mapping[str, int]) -> None:
        """Cuts event files of earlier sessions back to these lengths in bytes, and removes those without one."""
        for path in self._earlier:
            if path.name in lengths:
                os.truncate(path, min(lengths[path.name], path.stat().st_size))
            else:
                path.unlink()

    def _scalars(self, progress: Progress, metrics: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """One event against the step, one against the seconds."""
        named = {name if "/" in name else f"train/{name}": number for name, number in metrics.items()}
        self._add(scalars({**named, **speed}), progress.step)
        by_seconds = {f"by_seconds/{name}": number for name, number in metrics.items() if "/" in name}
        self._add(scalars(by_seconds), int(progress.seconds))

    def _add(self, summary: Summary, step: int = 0) -> None:
        event_file_writer(self._writer).add_summary(summary, step)


def leave_errors_to_the_next_call() -> None:
    """Lets a thread that writes events end without a traceback on the terminal: the next call raises its error."""
    show = threading.excepthook

    def hook(ended: threading.ExceptHookArgs) -> None:
        if not isinstance(ended.thread, _AsyncWriterThread):
            show(ended)

    threading.excepthook = hook


leave_errors_to_the_next_call()


def event_files(directory: Path) -> list[Path]:
    """The event files of a run, in the order of sessions."""
    return sorted(directory.glob("events.out.tfevents.*"))


def scalars(values: Mapping[str, float]) -> Summary:
    """Many scalars in one record, at a fraction of the cost of a record each."""
    return Summary(value=[Summary.Value(tag=tag, simple_value=number) for tag, number in values.items()])


def session_start(config: Mapping[str, Any]) -> Summary:
    """The options of a run as a row of the HPARAMS page."""
    info = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for name, option in flatten({group: config[group] for group in COMPARED if group in config}).items():
        if isinstance(option, bool):
            info.hparams[name].bool_value = option
        elif isinstance(option, int | float):
            info.hparams[name].number_value = option
        elif option is not None:
            info.hparams[name].string_value = str(option)
    return hparams(metadata.SESSION_START_INFO_TAG, session_start_info=info)


def session_end(status: Status) -> Summary:
    """The end of a run, for the HPARAMS page."""
    name = {"finished": "STATUS_SUCCESS", "failed": "STATUS_FAILURE", "preempted": "STATUS_UNKNOWN"}[status]
    info = plugin_data_pb2.SessionEndInfo(status=api_pb2.Status.Value(name), end_time_secs=time.time())
    return hparams(metadata.SESSION_END_INFO_TAG, session_end_info=info)


def hparams(tag: str, **content: Any) -> Summary:
    """A record of TensorBoard's HPARAMS plugin."""
    record = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
    return Summary(value=[Summary.Value(tag=tag, metadata=record, tensor=metadata.NULL_TENSOR)])


def verbatim(text: str) -> str:
    """Markdown that shows the text verbatim: indented lines are code, whatever they contain."""
    return "".join(f"    {line}\n" for line in text.split("\n"))


def layout(primary: str) -> dict[str, dict[str, list[Any]]]:
    """The CUSTOM SCALARS page: its charts and the tags in each, which are regular expressions."""

    def charts(metric: str) -> dict[str, list[Any]]:
        return {
            f"{metric} against steps": ["Multiline", [f"^[^/]+/{metric}$"]],
            f"{metric} against training seconds": ["Multiline", [f"^by_seconds/[^/]+/{metric}$"]],
        }

    share = "curvature/share_over_layers"
    return {
        **{metric: charts(metric) for metric in dict.fromkeys(["loss", primary.split("/")[-1]])},
        "curvature": {
            "share of curvature: median, least and largest layer": [
                "Margin",
                [f"{share}/median", f"{share}/min", f"{share}/max"],
            ],
            "share of curvature by layer": ["Multiline", ["^curvature/share/"]],
        },
        "speed": {
            "samples per second": ["Multiline", ["^speed/samples_per_second$"]],
            "model FLOP per second": ["Multiline", ["^speed/flops_per_second$"]],
            "shares of the time": ["Multiline", [f"^speed/({'|'.join(['data_wait', *STEP_PARTS])})$"]],
            "memory (MiB)": ["Multiline", ["^speed/memory_mib$"]],
        },
    }
