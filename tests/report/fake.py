"""Run directories as the trainer leaves them, without training."""

import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from trainer.options import flatten
from trainer.report.read_runs import RecordedRun


def config(**options: Any) -> dict[str, Any]:
    """A config like the trainer's: ``optimizer__lr=0.1`` sets optimizer.lr."""
    nested: dict[str, Any] = {
        "name": "digits_cnn",
        "model": {"name": "cnn", "widths": [16, 32]},
        "data": {"name": "digits", "batch_size": 64},
        "optimizer": {"name": "adamw", "lr": 0.001},
        "seed": 0,
        "loop": {"max_epochs": 3},
        "hydra": {"run": {"dir": "anywhere"}},
    }
    for key, value in options.items():
        *groups, last = key.split("__")
        place = nested
        for group in groups:
            place = place[group]
        place[last] = value
    return nested


def run(path: str = "run", **options: Any) -> RecordedRun:
    """A finished run that has no directory."""
    return RecordedRun(Path(path), flatten(config(**options)), "finished")


def write_run(
    folder: Path,
    values: Sequence[float],
    *,
    metric: str = "test/accuracy",
    state: str = "finished",
    error: str | None = None,
    pid: int | None = None,
    step_seconds: float = 0.01,
    declared: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Writes a run that was evaluated every ten steps with these values of the metric."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("# a comment\n" + yaml.safe_dump(config(**options)))
    status = {"format": 1, "state": state, "step": 10 * len(values), "metrics": {}, "error": error}
    if declared is not None:
        status["declared"] = declared
    if state != "running":
        status["primary"] = metric
    process = {"host": socket.gethostname(), "pid": pid or os.getpid(), "time": time.time()}
    (folder / "status.json").write_text(json.dumps({**status, **process}))
    (folder / "environment.json").write_text(json.dumps({"host": "here", "devices": [], "torch": "2.14"}))
    metrics, clock = [], []
    for i, value in enumerate(values, 1):
        place = {"step": 10 * i, "epoch": float(i)}
        seconds = {"step": 10 * i, "seconds": 10 * i * step_seconds}
        metrics += [
            {"kind": "train", **place, "train/loss": 1 / i, "lr": 0.1},
            {"kind": "curvature", **place, "layers": {"head.weight": {"age": 0.0}}},
            {"kind": "evaluation", **place, metric: None if value != value else value},
        ]
        clock += [
            {"kind": "train", **seconds, "samples_per_second": 6400.0, "memory_mib": 500.0 + i},
            {"kind": "evaluation", **seconds, "eval_seconds": 0.1},
        ]
    for name, records in (("metrics", metrics), ("clock", clock)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder
