"""``dry_run=true``: what a run would take and do, without doing it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from trainer.config import Config
from trainer.distributed import Ranks
from trainer.loop import Trainer
from trainer.meters import memory_mib
from trainer.monitor import MonitorOptions, Monitors
from trainer.run import build, describe

STEPS = 2


def dry_run(config: Config, ranks: Ranks) -> None:
    """Builds everything, shows parameters, curvature and memory, times two steps and an evaluation.

    Raises:
        UserError: as `trainer.run.build`.
    """
    trainer = build(config, ranks)
    info = describe(trainer, Path(), 0)
    trainer.monitors = Monitors(info, MonitorOptions(sinks=[]))
    console = Console(quiet=not ranks.first)
    console.print(info.summary, highlight=False)
    console.print(parameter_table(trainer))
    steps = [timed(trainer.train_step) for _ in range(STEPS)]
    evaluation = timed(lambda: trainer.evaluate_splits(""))
    console.print(memory_table(trainer))
    times = Table("what", "seconds", title="time")
    for number, seconds in enumerate(steps, 1):
        times.add_row(f"step {number}", f"{seconds:.3f}")
    times.add_row("evaluation", f"{evaluation:.3f}")
    console.print(times)
    if trainer.budget.steps is not None:
        left = trainer.budget.steps * steps[-1] / 60
        console.print(
            f"{trainer.budget.steps} steps at the last one's pace: {left:.1f} minutes", highlight=False
        )


def timed(action: Any) -> float:
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def parameter_table(trainer: Trainer) -> Table:
    """Each parameter with where its curvature comes from."""
    count = sum(p.numel() for p in trainer.model.parameters())
    table = Table("parameter", "shape", "curvature", title=f"{count:,} parameters")
    coverage: Callable[[], list[Any]] = getattr(trainer.optimizer, "coverage", list)
    sources = {row.parameter: row.source for row in coverage()}
    for name, parameter in trainer.model.named_parameters():
        source = sources.get(name, "none") if parameter.requires_grad else "frozen"
        table.add_row(name, shape(parameter), source)
    return table


def shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "scalar"


def memory_table(trainer: Trainer) -> Table:
    """Bytes by part, after the first steps have made what is made on the way."""
    parameters = list(trainer.model.parameters())
    parts = {
        "parameters": parameters,
        "buffers": list(trainer.model.buffers()),
        # the loop frees the gradients after each step; they are as large as what is trained
        "gradients": [p for p in parameters if p.requires_grad],
        "optimizer state": list(trainer.optimizer.state.values()),
        "averaged weights": list(trainer.state.ema.average.values()) if trainer.state.ema else [],
    }
    table = Table("part", "MiB", title="memory")
    for part, tensors in parts.items():
        table.add_row(part, f"{nbytes(tensors) / 2**20:.2f}")
    table.add_row("peak, all in all", f"{memory_mib(trainer.device):.2f}")
    return table


def nbytes(value: Any) -> int:
    """Bytes of all tensors in a nested structure."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return nbytes(list(value.values()))
    if isinstance(value, list | tuple):
        return sum(nbytes(item) for item in value)
    return 0
