"""A run of 60 steps that only reports: the same numbers on every execution, two steps a training second."""

import math
from pathlib import Path
from typing import Any

import torch

from trainer.monitor import MonitorOptions, Monitors, Progress, RunInfo

STEPS = 60
CONFIG = {
    "seed": 3,
    "model": {"name": "cnn", "width": 32, "dropout": 0.1},
    "data": {"name": "digits", "augment": True, "root": None},
    "optimizer": {"name": "adafisher", "lr": 1e-3, "betas": [0.9, 0.99]},
    "schedule": {"name": "cosine"},
    "loop": {"max_steps": STEPS},
}

CLOCK = {"samples_per_second": 1234.5, "data_wait": 0.125, "flops_per_second": 1.5e12, "memory_mib": 412.0}


def run_info(directory: Path, **changes: Any) -> RunInfo:
    values = {
        "directory": directory,
        "name": "digits",
        "config": CONFIG,
        "summary": "cnn (93,322 parameters) on digits (1,437 samples), cpu, fp32",
        "total_steps": STEPS,
        "total_seconds": None,
        "steps_per_epoch": 10,
        "primary": "test/accuracy",
    }
    return RunInfo(**{**values, **changes})


def monitors(directory: Path, *sinks: str, **changes: Any) -> Monitors:
    return Monitors(run_info(directory, **changes), MonitorOptions(sinks=list(sinks)))


def progress(step: int) -> Progress:
    return Progress(step, step / 10, step / 2, step / STEPS, *best(step))


def best(step: int) -> tuple[float | None, int]:
    """The best accuracy of the evaluations until a step, and the step of that."""
    evaluated = {accuracy(at): at for at in range(10, step + 1, 10)}
    return (max(evaluated), evaluated[max(evaluated)]) if evaluated else (None, 0)


def accuracy(step: int) -> float:
    return math.exp(-loss(step))


def loss(step: int) -> float:
    return 2.3 * math.exp(-step / 20) + 0.1 * (step % 7)


def play(told: Monitors, first: int, last: int) -> dict[str, float]:
    """Reports steps first..last: train records every 5, curvature every 10, evaluations every 10."""
    metrics = {}
    for step in range(first, last + 1):
        now = progress(step)
        told.tick(now)
        if step % 5 == 0:
            values = {"train/loss": loss(step), "train/accuracy": accuracy(step), "lr": 1e-3}
            told.train(now, values, CLOCK)
        if step % 10 == 0:
            told.curvature(now, {f"layer{i}": {"share": i / 10 + step / 1000} for i in range(3)})
            metrics = {"test/loss": loss(step) + 0.1, "test/accuracy": accuracy(step)}
            told.evaluation(now, metrics, {"eval_seconds": 0.1})
            told.predictions(now, "test/predictions", torch.rand(4, 1, 8, 8), torch.arange(4), torch.zeros(4))
            told.text(now, "val/sample", f"To be at step {step},\n  or not to be")
            told.histograms(now, {"conv.weight": torch.linspace(-step, step, 100)})
    return metrics
