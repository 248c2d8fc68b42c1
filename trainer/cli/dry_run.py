"""``dry_run=true``: what a run would need and do, without doing it."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from trainer.cli.common import folding_table, table_console
from trainer.config.schema import Config, DryRun
from trainer.data import Data, TrainLoader
from trainer.distributed.ranks import Ranks
from trainer.errors import BuildError, ConfigError
from trainer.optim.ema import EMA
from trainer.optim.protocols import CurvatureOptimizer, EvaluatesAgain
from trainer.training.build import (
    build,
    build_optimizer,
    check_evals,
    load_data,
    strategy_of,
)
from trainer.training.build_model import build_model, initialize_lazy_layers
from trainer.training.evaluation import evaluate
from trainer.training.micro_batches import settle_accumulate
from trainer.training.parts import RunParts
from trainer.training.run import describe
from trainer.training.step import TrainStep
from trainer.training.tensor_memory import Tensors, TensorShare, mebibytes, tensors_of
from trainer.training.throughput import memory_mib

STEPS = 2


def dry_run(config: Config, ranks: Ranks) -> None:
    """Builds everything, shows parameters, curvature and memory, times two steps and an evaluation.

    With ``dry_run.world_size`` it shows what each rank of a run on that many would hold, without holding it.

    Raises:
        UserError: as `trainer.training.build.build`.
    """
    console = table_console(quiet=not ranks.is_rank0)
    if isinstance(config.dry_run, DryRun):
        plan(config, config.dry_run.world_size, console)
        return
    if config.loop.accumulate == "auto":
        config = settle_accumulate(config, None, ranks)
        console.print(f"loop.accumulate=auto: {config.loop.accumulate}", highlight=False)
    parts = build(config, ranks)
    console.print(describe(parts, Path(), 0).summary, highlight=False)
    console.print(parameter_table(parts))
    train_step = TrainStep(parts)
    steps = [timed(train_step) for _ in range(STEPS)]
    evaluation = timed(lambda: evaluate(parts))
    console.print(memory_table(parts))
    times = folding_table("what", "seconds", title="time")
    for number, seconds in enumerate(steps, 1):
        times.add_row(f"step {number}", f"{seconds:.3f}")
    times.add_row("evaluation", f"{evaluation:.3f}")
    console.print(times)
    total = parts.budget.steps
    if total is not None:
        console.print(
            f"{total} steps at the last one's pace: {total * steps[-1] / 60:.1f} minutes", highlight=False
        )


def plan(config: Config, world_size: int, console: Console) -> None:
    """Shows what each of ``world_size`` ranks would hold, next to what a single one would.

    Raises:
        ConfigError: the strategy, the batch or an evaluation split does not fit that many ranks.
    """
    strategy, replicas = strategy_of(config), config.parallel.get("replicas", 1)
    if strategy.min_ranks == 1:
        raise ConfigError(f"dry_run.world_size={world_size} needs parallel=ddp, fsdp or hsdp")
    if replicas is None or world_size % replicas:
        raise ConfigError(
            f"parallel.replicas={replicas or 'null'} is wrong: it must be a divisor of {world_size} ranks"
        )
    data = load_data(config, torch.device("cpu"))
    check_evals(data, world_size)
    TrainLoader(
        data.train,
        config.loader,
        seed=config.seed,
        world_size=world_size,
        micro_batches=1 if config.loop.accumulate == "auto" else config.loop.accumulate,
    )
    try:
        tensors = planned_tensors(config, data, torch.device("meta"))
    except (BuildError, RuntimeError):  # the model or the optimizer's first step needs numbers
        tensors = planned_tensors(config, data, torch.device("cpu"))
    shards = world_size // replicas if strategy.shards_parameters else 1
    alone = mebibytes(tensors, TensorShare.bytes_here)
    each = mebibytes(tensors, lambda share: share.bytes_in(shards))
    title = f"MiB without activations, parallel={config.parallel['name']}"
    table = folding_table("part", "one rank", f"each of {world_size}", title=title)
    for part in alone:
        table.add_row(part, f"{alone[part]:.2f}", f"{each[part]:.2f}")
    console.print(table)


def planned_tensors(config: Config, data: Data, device: torch.device) -> Tensors:
    """The tensors of a run on one rank; on the device ``meta`` they have shapes only.

    Raises:
        ConfigError: the optimizer's state has no size that is known before.
    """
    with device:
        model = build_model(config, data)
        initialize_lazy_layers(model, data)
        ema = EMA(model, config.loop.ema) if config.loop.ema is not None else None
        optimizer = build_optimizer(config, model)
        if isinstance(optimizer, EvaluatesAgain):
            raise ConfigError(
                f"dry_run.world_size does not know the state of optimizer={config.optimizer['name']}, "
                "which grows with its history: use dry_run=true"
            )
        if not optimizer.state:  # it makes it in its first step
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            optimizer.step()
    return tensors_of(model, optimizer, ema)


def timed(action: Callable[[], object]) -> float:
    """The seconds that an action takes, on the GPU too."""
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def parameter_table(parts: RunParts) -> Table:
    """Each parameter with where its curvature comes from and what step it takes."""
    count = sum(p.numel() for p in parts.model.parameters())
    table = folding_table("parameter", "shape", "curvature", "step", title=f"{count:,} parameters")
    optimizer = parts.optimizer
    coverage = optimizer.coverage() if isinstance(optimizer, CurvatureOptimizer) else []
    found = {row.parameter: (row.source, row.update) for row in coverage}
    for name, parameter in parts.model.named_parameters():
        cells = found.get(name, ("none", "")) if parameter.requires_grad else ("frozen", "")
        table.add_row(name, shape(parameter), *cells)
    return table


def shape(tensor: Tensor) -> str:
    """Such as ``16 x 1 x 3 x 3``."""
    return " x ".join(map(str, tensor.shape)) or "scalar"


def memory_table(parts: RunParts) -> Table:
    """MiB by part on each rank, after the first steps have allocated what they need."""
    tensors = tensors_of(parts.model, parts.optimizer, parts.state.ema)
    own = {**mebibytes(tensors, TensorShare.bytes_here), "peak, with activations": memory_mib(parts.device)}
    ranks = parts.ranks.all_gather_object(own)
    heads = [f"rank {rank}" for rank in range(len(ranks))] if len(ranks) > 1 else ["MiB"]
    table = folding_table("part", *heads, title="memory in MiB" if len(ranks) > 1 else "memory")
    for part in own:
        table.add_row(part, *(f"{rank[part]:.2f}" for rank in ranks))
    return table
