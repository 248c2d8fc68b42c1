"""From a config to the parts of a run: model, data, optimizer and so on by name, ready for training."""

import os

import torch
from torch import nn
from torch.optim import Optimizer

from trainer.callbacks import Callbacks, Setup
from trainer.checkpoint.state import TrainState, seed_all
from trainer.config.schema import DEFAULT_EPOCHS, Config
from trainer.data import DATA, Data, TrainLoader, hold_out
from trainer.data.random import mix
from trainer.distributed.ranks import SINGLE_PROCESS, Ranks
from trainer.distributed.strategies import STRATEGIES, Strategy
from trainer.distributed.wrapping import blocks_of, recompute
from trainer.errors import ConfigError
from trainer.formatting import counted
from trainer.monitor import check_sinks
from trainer.objectives import Objective
from trainer.optim import OPTIMIZERS, SCHEDULES, Schedule, param_groups
from trainer.optim.ema import EMA
from trainer.optim.protocols import EvaluatesAgain, ReadsLossScale, differentiates_gradient
from trainer.training.build_model import build_model, initialize_lazy_layers
from trainer.training.build_objective import build_objective, objective_config
from trainer.training.flops import skeleton_of
from trainer.training.parts import Budget, RunParts
from trainer.training.precision import Precision
from trainer.training.samples import SampleOutputs


def build(config: Config, ranks: Ranks = SINGLE_PROCESS) -> RunParts:
    """Builds a run's parts, with Python's, NumPy's and torch's random numbers seeded; writes nothing.

    All ranks build the same model; from then on each has random numbers of its own.

    Raises:
        UserError: an option does not fit the others, data is missing, a package is not installed.
    """
    objective_config(config)  # refuses what does not fit before anything is built
    check_ranks(config, ranks)
    choose_algorithms(config.deterministic)
    device, data, model, objective = ranks.run_on_all(lambda: build_on_rank(config, ranks))
    skeleton = skeleton_of(model)
    precision = Precision(config.precision.name, device)
    strategy: Strategy = STRATEGIES.build(config.parallel, ranks, device, precision.compute_dtype)
    strategy.apply(model, compiled=config.loop.compile)
    ema = EMA(model, config.loop.ema) if config.loop.ema is not None else None
    optimizer = build_optimizer(config, model)
    assert config.loop.accumulate != "auto"  # it is settled before
    loader = TrainLoader(
        data.train,
        config.loader,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        micro_batches=config.loop.accumulate,
    )
    if isinstance(optimizer, ReadsLossScale):
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
        callbacks=Callbacks(config.callbacks),
        data=data.fingerprint,
    )
    parts = RunParts(
        config=config,
        state=state,
        data=data,
        objective=objective,
        precision=precision,
        strategy=strategy,
        budget=budget_of(config, loader.batches_per_epoch),
        samples=SampleOutputs(
            model, data=data, objective=objective, precision=precision, strategy=strategy, config=config
        ),
        skeleton=skeleton,
    )
    state.callbacks.check(Setup(**parts.seen_by_callbacks()))
    return parts


def choose_algorithms(deterministic: bool) -> None:
    """Sets torch to deterministic algorithms, or back.

    It comes before anything is done on a GPU: cuBLAS reads CUBLAS_WORKSPACE_CONFIG only once per process.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # not where there is nothing to set back: the call imports torch's compiler, half a second
    if deterministic or torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(deterministic)


def build_on_rank(config: Config, ranks: Ranks) -> tuple[torch.device, Data, nn.Module, Objective]:
    """What a rank builds without the others: device, data, objective, and the model, which is on the CPU still."""
    check_sinks(config.monitor)
    device = pick_device(config.device, ranks)
    seed_all(config.seed)
    data = load_data(config, device)
    check_evals(data, ranks.world_size)
    model = build_model(config, data)
    initialize_lazy_layers(model, data)
    objective = build_objective(config, model, data, device)
    if config.loop.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.loop.activation_checkpointing != "none":
        every = config.loop.activation_checkpointing
        recompute(blocks_to_recompute(model, config), 1 if every == "full" else every)
    return device, data, model, objective


def load_data(config: Config, device: torch.device) -> Data:
    """The data on a device, with a part of the training set held out if ``data.holdout`` says so."""
    return hold_out(DATA.build(config.data, device, config.seed), config.loader.holdout)


def check_evals(data: Data, world_size: int) -> None:
    """Checks that each rank has a sample of every evaluation split.

    Raises:
        ConfigError: a split has too few.
    """
    for name, split in data.evals.items():
        if len(split) < world_size:
            raise ConfigError(
                f"the evaluation split {name} has {counted(len(split), 'sample')} for {counted(world_size, 'rank')}: "
                "start fewer ranks, or evaluate on more samples"
            )


def build_optimizer(config: Config, model: nn.Module) -> Optimizer:
    """The optimizer of a model that is on its device and sharded as it will be trained.

    Raises:
        ConfigError: there is nothing to train, or the optimizer does not fit the strategy.
    """
    groups = param_groups(model, config.optimizer["decay_norms_and_biases"])
    if not groups:
        raise ConfigError(f"model={config.model['name']} has no trainable parameter")
    optimizer: Optimizer = OPTIMIZERS.build(config.optimizer, model, groups)
    if differentiates_gradient(optimizer):
        check_second_derivative(config)
    if isinstance(optimizer, EvaluatesAgain):
        check_evaluations(config)
    return optimizer


def check_second_derivative(config: Config) -> None:
    """Checks that the gradient can be differentiated again, as the run's optimizer does.

    Raises:
        ConfigError: it cannot.
    """
    name, parallel = config.optimizer["name"], config.parallel["name"]
    cause = f"optimizer={name} differentiates the gradient again"
    if strategy_of(config).min_ranks > 1:
        raise ConfigError(f"{cause}, which parallel={parallel} does not allow: use parallel=none")
    if config.loop.compile:
        raise ConfigError(f"{cause}, which compiled models do not allow: use loop.compile=false")
    if (
        config.precision.name == "fp16"
    ):  # the loss scale keeps the gradient in range, not what it is differentiated to
        raise ConfigError(f"{cause}, which overflows in float16: use precision=bf16")


def check_evaluations(config: Config) -> None:
    """Checks that a step can evaluate its batch several times, and compare the losses and gradients.

    Raises:
        ConfigError: it cannot.
    """
    cause = f"optimizer={config.optimizer['name']} compares several gradients of a batch"
    if config.precision.name == "fp16":
        raise ConfigError(f"{cause}, which the loss scale of float16 does not allow: use precision=bf16")
    if config.loop.clip_norm is not None:
        raise ConfigError(f"{cause}, which clipping would change: use loop.clip_norm=null")
    if config.loop.channels_last:
        raise ConfigError(f"{cause} as vectors, which have no channels: use loop.channels_last=false")


def blocks_to_recompute(model: nn.Module, config: Config) -> list[nn.Module]:
    """The blocks of a model that activation checkpointing may run again.

    Raises:
        ConfigError: it has none.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise ConfigError(
            f"loop.activation_checkpointing={config.loop.activation_checkpointing} finds no blocks that recur "
            f"in model={config.model['name']}: leave it at none"
        )
    return blocks


def pick_device(name: str, ranks: Ranks) -> torch.device:
    """The device of that name; ``auto`` takes a GPU of CUDA where there is one, else the CPU.

    Each rank of a node gets a GPU of its own, whether the launcher shows it only that one or all of the node.

    Raises:
        ConfigError: this machine has no such device, or too few of them.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"  # AdaFisher needs what torch lacks on mps
    if not available[name]:
        kinds = ", ".join(kind for kind, there in available.items() if there)
        raise ConfigError(f"device={name} is not available on this machine: it has {kinds}")
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


def strategy_of(config: Config) -> type[Strategy]:
    """The class of the run's strategy."""
    strategy: type[Strategy] = STRATEGIES.get(config.parallel["name"]).target
    return strategy


def check_ranks(config: Config, ranks: Ranks) -> None:
    """Checks that the strategy fits the ranks that were started.

    Raises:
        ConfigError: it does not.
    """
    name, strategy = config.parallel["name"], strategy_of(config)
    if strategy.min_ranks == 1 and ranks.world_size > 1:
        raise ConfigError(f"{ranks.world_size} ranks were started: choose parallel=ddp, fsdp or hsdp")
    if strategy.min_ranks > 1 and not ranks.store:
        raise ConfigError(
            f"parallel={name} needs more than one rank: start it with torchrun --nproc-per-node N -m trainer "
            f"or srun, or use parallel=none"
        )


def budget_of(config: Config, batches_per_epoch: int) -> Budget:
    """Where the run ends; without any budget in the config after ``DEFAULT_EPOCHS``.

    Raises:
        ConfigError: the warm-up is longer.
    """
    loop = config.loop
    if loop.max_time is not None:
        return Budget(None, loop.max_time)
    steps = loop.max_steps or (loop.max_epochs or DEFAULT_EPOCHS) * batches_per_epoch
    if config.schedule["warmup"] >= max(steps, 1):
        raise ConfigError(
            f"schedule.warmup={config.schedule['warmup']:g} is longer than the run's {steps} steps"
        )
    return Budget(steps, None)
