"""``dry_run=true``: what a run would take and do, without doing it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from trainer.cli.memory_estimate import Parts, TensorShare, mebibytes, parts_of
from trainer.config.schema import Config, DryRun
from trainer.data import Data, TrainLoader
from trainer.distributed.ranks import Ranks
from trainer.errors import ConfigError
from trainer.monitor import MonitorOptions, Monitors
from trainer.optim.ema import EMA
from trainer.training.build import build, build_model, build_optimizer, initialize_lazy_layers, load_data
from trainer.training.loop import Trainer
from trainer.training.run import describe
from trainer.training.throughput import memory_mib

STEPS = 2


def dry_run(config: Config, ranks: Ranks) -> None:
    """Builds everything, shows parameters, curvature and memory, times two steps and an evaluation.

    With ``dry_run.world_size`` it shows what a run on so many ranks would hold, without holding it.

    Raises:
        UserError: as `trainer.training.build.build`.
    """
    console = Console(quiet=not ranks.is_rank0)
    if isinstance(config.dry_run, DryRun):
        plan(config, config.dry_run.world_size, console)
        return
    trainer = build(config, ranks)
    info = describe(trainer, Path(), 0)
    trainer.monitors = Monitors(info, MonitorOptions(sinks=[]))
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


def plan(config: Config, world_size: int, console: Console) -> None:
    """Shows what each of so many ranks would hold, beside what one rank alone would.

    Raises:
        ConfigError: the strategy or the batch does not fit so many ranks.
    """
    strategy, replicas = config.parallel["name"], config.parallel.get("replicas", 1)
    if strategy == "none":
        raise ConfigError(f"dry_run.world_size={world_size} needs parallel=ddp, fsdp or hsdp")
    if replicas is None or world_size % replicas:
        raise ConfigError(
            f"parallel.replicas={replicas or 'null'} is wrong: say how many copies on {world_size} ranks"
        )
    data = load_data(config, torch.device("cpu"))
    TrainLoader(
        data.train,
        config.loader,
        seed=config.seed,
        world_size=world_size,
        micro_batches=config.loop.accumulate,
    )
    try:
        parts = planned_parts(config, data, torch.device("meta"))
    except (
        RuntimeError,
        NotImplementedError,
    ):  # its making needs numbers, or the optimizer's first step does
        parts = planned_parts(config, data, torch.device("cpu"))
    shards = 1 if strategy == "ddp" else world_size // replicas
    alone, each = (
        mebibytes(parts, TensorShare.bytes_here),
        mebibytes(parts, lambda held: held.bytes_in(shards)),
    )
    table = Table(
        "part", "one rank", f"each of {world_size}", title=f"MiB without activations, parallel={strategy}"
    )
    for part in alone:
        table.add_row(part, f"{alone[part]:.2f}", f"{each[part]:.2f}")
    console.print(table)


def planned_parts(config: Config, data: Data, device: torch.device) -> Parts:
    """The tensors of a run; on the device ``meta`` they have shapes only."""
    with device:
        model = build_model(config, data)
        initialize_lazy_layers(model, data)
        ema = EMA(model, config.loop.ema) if config.loop.ema is not None else None
        optimizer = build_optimizer(config, model)
        if not optimizer.state:  # it makes it in its first step
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            optimizer.step()
    return parts_of(model, optimizer, ema)


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
    """Mebibytes by part on each rank, after the first steps have made what is made on the way."""
    parts = parts_of(trainer.model, trainer.optimizer, trainer.state.ema)
    here = {**mebibytes(parts, TensorShare.bytes_here), "peak, with activations": memory_mib(trainer.device)}
    ranks = trainer.ranks.all_gather_object(here)
    heads = [f"rank {rank}" for rank in range(len(ranks))] if len(ranks) > 1 else ["MiB"]
    table = Table("part", *heads, title="memory in MiB" if len(ranks) > 1 else "memory")
    for part in here:
        table.add_row(part, *(f"{rank[part]:.2f}" for rank in ranks))
    return table
