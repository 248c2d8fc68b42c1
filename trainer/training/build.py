"""From a config to the parts of a run: models, data, optimizer and so on by name, put together for training."""

import os

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from trainer.checkpoint.state import TrainState, seed_all
from trainer.config.schema import DEFAULT_EPOCHS, Config
from trainer.data import DATA, Data, TrainLoader, hold_out
from trainer.data.random import mix
from trainer.distributed.ranks import SINGLE_PROCESS, Ranks
from trainer.distributed.strategies import STRATEGIES, Strategy
from trainer.distributed.wrapping import blocks_of, recompute
from trainer.errors import ConfigError
from trainer.models import MODELS
from trainer.optim import OPTIMIZERS, SCHEDULES, Schedule, param_groups
from trainer.optim.ema import EMA
from trainer.training.loop import Budget, Trainer
from trainer.training.objectives import OBJECTIVES
from trainer.training.precision import Precision


def build(config: Config, ranks: Ranks = SINGLE_PROCESS) -> Trainer:
    """Builds a run's parts, with Python's, NumPy's and torch's random numbers seeded; writes nothing.

    All ranks build the same model; from then on each has random numbers of its own.

    Raises:
        UserError: an option does not fit the others, data is missing, a package is not installed.
    """
    check_ranks(config, ranks)
    choose_algorithms(config.deterministic)
    device, data, model = ranks.run_on_all(lambda: build_parts(config, ranks))
    precision = Precision(config.precision.name, device)
    strategy: Strategy = STRATEGIES.build(config.parallel, ranks, device, precision.compute_dtype)
    strategy.apply(model, compiled=config.loop.compile)
    ema = EMA(model, config.loop.ema) if config.loop.ema is not None else None
    optimizer = build_optimizer(config, model)
    loader = TrainLoader(
        data.train,
        config.loader,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        micro_batches=config.loop.accumulate,
    )
    if hasattr(optimizer, "grad_scaler"):  # an optimizer that reads the loss scale
        optimizer.grad_scaler = precision.scaler
    if not ranks.is_rank0:
        seed_all(mix(config.seed, ranks.rank))
    state = TrainState(
        model=model,
        optimizer=optimizer,
        schedule=Schedule(optimizer, SCHEDULES.build(config.schedule), config.schedule["warmup"]),
        scaler=precision.scaler,
        loader=loader,
        ema=ema,
    )
    return Trainer(
        state,
        data=data,
        objective=OBJECTIVES[objective_of(config)](config.loop.label_smoothing),
        precision=precision,
        budget=budget_of(config, loader.batches_per_epoch),
        config=config,
        strategy=strategy,
    )


def choose_algorithms(deterministic: bool) -> None:
    """For this process, before it does anything on a GPU: cuBLAS looks at its variable but once."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def build_parts(config: Config, ranks: Ranks) -> tuple[torch.device, Data, nn.Module]:
    """What a rank builds on its own: it finds its device and its data, and makes the model on the CPU."""
    device = pick_device(config.device, ranks)
    seed_all(config.seed)
    data = load_data(config, device)
    model = build_model(config, data)
    initialize_lazy_layers(model, data)
    if config.loop.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.loop.activation_checkpointing != "none":
        every = config.loop.activation_checkpointing
        recompute(blocks_to_recompute(model, config), 1 if every == "full" else every)
    return device, data, model


def load_data(config: Config, device: torch.device) -> Data:
    return hold_out(DATA.build(config.data, device, config.seed), config.loader.holdout)


def build_optimizer(config: Config, model: nn.Module) -> Optimizer:
    """The optimizer of a model that is where and in such shards as it will be trained."""
    groups = param_groups(model, config.optimizer["decay_norms_and_biases"])
    if not groups:
        raise ConfigError(f"model={config.model['name']} has no trainable parameter")
    optimizer: Optimizer = OPTIMIZERS.build(config.optimizer, model, groups)
    if getattr(optimizer, "needs_create_graph", False) and config.parallel["name"] != "none":
        raise ConfigError(
            f"optimizer={config.optimizer['name']} differentiates the gradient again, which parallel="
            f"{config.parallel['name']} does not allow: use parallel=none"
        )
    return optimizer


def blocks_to_recompute(model: nn.Module, config: Config) -> list[nn.Module]:
    blocks = blocks_of(model)
    if not blocks:
        raise ConfigError(
            f"loop.activation_checkpointing={config.loop.activation_checkpointing} finds no blocks that recur "
            f"in model={config.model['name']}: leave it at none"
        )
    return blocks


def pick_device(name: str, ranks: Ranks) -> torch.device:
    """The device of that name; ``auto`` takes an accelerator where there is one.

    Each rank of a node has a GPU of its own, whether the launcher shows it that one alone or all of the node.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise ConfigError(f"device={name} is not available on this machine: it has {there}")
    if name == "mps" and ranks.world_size > 1:
        raise ConfigError("device=mps trains on one rank only: use device=cpu or parallel=none")
    if name == "cuda" and ranks.store:
        visible = torch.cuda.device_count()
        index = 0 if visible == 1 else ranks.local_rank
        if index >= visible:
            raise ConfigError(
                f"no GPU is left for local rank {ranks.local_rank}: this node shows {visible}, start fewer ranks"
            )
        return torch.device("cuda", index)
    return torch.device(name)


def check_ranks(config: Config, ranks: Ranks) -> None:
    name = config.parallel["name"]
    if name == "none" and ranks.world_size > 1:
        raise ConfigError(f"{ranks.world_size} ranks were started: choose parallel=ddp, fsdp or hsdp")
    if name != "none" and not ranks.store:
        raise ConfigError(
            f"parallel={name} needs more than one rank: start it with torchrun --nproc-per-node N -m trainer "
            f"or srun, or use parallel=none"
        )
    if name in ("fsdp", "hsdp") and config.loop.channels_last:
        raise ConfigError(
            f"loop.channels_last=true does not go with parallel={name}, which cuts up weights in rows"
        )


def objective_of(config: Config) -> str:
    return MODELS.get(config.model["name"]).tags.get("objective", "classification")


def build_model(config: Config, data: Data) -> nn.Module:
    """The model, with the options that the user left open filled in from the data.

    Raises:
        ConfigError: the model reads something else than the data gives, or has another number of classes.
    """
    name = config.model["name"]
    kind = "tokens" if objective_of(config) == "language" else "images"
    if kind != data.kind:
        raise ConfigError(
            f"model={name} reads {kind}, but data={config.data['name']} gives {data.kind}: "
            f"choose another model or another data"
        )
    options = dict(config.model)
    for fact, value in data.model_defaults.items():
        if fact not in options:
            continue
        if options[fact] is None:
            options[fact] = value
        elif fact in ("num_classes", "vocab_size", "in_channels") and not fits(fact, options[fact], value):
            raise ConfigError(
                f"model.{fact}={options[fact]} does not fit data={config.data['name']}, which has {value}: "
                f"leave it null"
            )
    return MODELS.build(options)


@torch.no_grad()
def initialize_lazy_layers(model: nn.Module, data: Data) -> None:
    """Shows a sample to a model with layers such as ``nn.LazyLinear``, which learn their shapes from it."""
    if any(is_lazy(parameter) for parameter in model.parameters()):
        model.eval()(data.train.batch(torch.arange(1), None)[0].cpu())


def fits(fact: str, option: int, value: int) -> bool:
    """More classes or tokens than the data has do no harm; channels must be the same."""
    return option == value if fact == "in_channels" else option >= value


def budget_of(config: Config, batches_per_epoch: int) -> Budget:
    loop = config.loop
    if loop.max_time is not None:
        return Budget(None, loop.max_time)
    steps = loop.max_steps or (loop.max_epochs or DEFAULT_EPOCHS) * batches_per_epoch
    if config.schedule["warmup"] >= max(steps, 1):
        raise ConfigError(
            f"schedule.warmup={config.schedule['warmup']:g} is longer than the run's {steps} steps"
        )
    return Budget(steps, None)
