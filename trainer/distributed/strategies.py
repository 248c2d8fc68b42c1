"""Distribution strategies, applied to a model from outside: DDP, FSDP2 and HSDP by name."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer._private import _NormBase
from trainer.distributed.batch_norm import synchronize_batch_norms
from trainer.distributed.ranks import Ranks
from trainer.distributed.wrapping import blocks_of, compile_each, units_of_size
from trainer.errors import ConfigError
from trainer.options import Count, Positive
from trainer.registry import Registry

if TYPE_CHECKING:  # their import takes a second, and only FSDP needs them
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

STRATEGIES = Registry("parallel", entry_points="trainer.strategies", explains=False)
"""Strategies by name, subclasses of `Strategy`; their keyword-only fields are the options of ``parallel=NAME``."""


@STRATEGIES.register("none")
@dataclass(eq=False, repr=False)
class Strategy:
    """One process; the base of the strategies.

    Args:
        ranks: the processes that train together.
        device: this rank's.
        compute_dtype: of the forward and backward pass where autocast lowers it; None: that of the parameters.
    """

    ranks: Ranks
    device: torch.device
    compute_dtype: torch.dtype | None

    min_ranks: ClassVar[int] = 1
    """The smallest number of ranks that it is of use on; with 1, it is for a single process."""
    shards_parameters: ClassVar[bool] = False
    """Whether each rank holds only some rows of each parameter."""
    settles_buckets: ClassVar[bool] = False
    """Whether the first backward pass in a process sums gradients in another order than all later ones."""

    module: nn.Module = field(init=False)
    """What training calls, once the strategy is applied: the model, or what wraps it."""

    @property
    def gradient_replicas(self) -> int:
        """Ranks that hold the same gradient."""
        return 1

    def apply(self, model: nn.Module, *, compiled: bool) -> None:
        """Moves a model to its device or devices, in place; the optimizer is made afterwards.

        Args:
            model: as built, on the CPU.
            compiled: compile its forward pass.

        Raises:
            ConfigError: the model cannot be distributed in this way.
        """
        model.to(self.device)
        if compiled:
            model.compile()
        self.module = model

    def micro_batch(self, last: bool) -> AbstractContextManager[object]:
        """A context for the forward and backward pass of one of a step's micro-batches; ``last``: of the last one."""
        return nullcontext()

    @contextmanager
    def inference(self) -> Iterator[None]:
        """A context for forward passes of the model itself, without gradients."""
        with torch.no_grad():
            yield


@dataclass(eq=False, repr=False)
class MultiRankStrategy(Strategy):
    """Base of the strategies for several ranks: starts their process group.

    Args:
        sync_batch_norm: batch norms normalize by the statistics of all ranks' parts of a batch, so that results do not
            depend on the number of ranks; with micro-batches, by those of a micro-batch.
        timeout: seconds after which a collective that some rank does not join fails.
    """

    _: KW_ONLY
    sync_batch_norm: bool = True
    timeout: Positive = 600.0

    min_ranks = 2

    def __post_init__(self) -> None:
        self.ranks.start(self.device, self.timeout)


@STRATEGIES.register("ddp")
@dataclass(eq=False, repr=False)
class DDP(MultiRankStrategy):
    """The whole model on every rank; gradients are averaged during the backward pass.

    Args:
        bucket_mb: MiB of gradients that are averaged at a time.
        find_unused_parameters: look for parameters that a step does not use, which otherwise is an error.
    """

    _: KW_ONLY
    bucket_mb: Positive = 25.0
    find_unused_parameters: bool = False

    settles_buckets = True

    @property
    def gradient_replicas(self) -> int:
        """All ranks."""
        return self.ranks.world_size

    def apply(self, model: nn.Module, *, compiled: bool) -> None:
        """Moves the model to this rank's device and wraps it so that its backward pass averages gradients."""
        if self.sync_batch_norm:
            synchronize_batch_norms(model)
        super().apply(model, compiled=compiled)
        with warnings.catch_warnings():
            # torch 2.14 calls it forward_sync_buffers
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.module = DistributedDataParallel(
                model,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False,  # the loop averages them
                bucket_cap_mb=self.bucket_mb,
                find_unused_parameters=self.find_unused_parameters,
                gradient_as_bucket_view=True,
            )

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Gradients are averaged in the last micro-batch only.

        Raises:
            ConfigError: a parameter has no gradient, for which the average waits, and that of others with it.
        """
        assert isinstance(self.module, DistributedDataParallel)
        with nullcontext() if last else self.module.no_sync():
            yield
        if last and not self.find_unused_parameters:
            unused = [
                name
                for name, p in self.module.module.named_parameters()
                if p.requires_grad and p.grad is None
            ]
            if unused:
                raise ConfigError(
                    f"the loss does not depend on {', '.join(unused[:3])}{', ...' * (len(unused) > 3)}: "
                    f"set parallel.find_unused_parameters=true"
                )


@STRATEGIES.register("fsdp")
@dataclass(eq=False, repr=False)
class FSDP(MultiRankStrategy):
    """Parameters, gradients and optimizer state sharded over all ranks, gathered unit by unit (FSDP2).

    Args:
        units: what is gathered at a time: the model's blocks, or modules of at least that many parameters.
        reshard_after_forward: free a unit after its forward pass and gather it again for the backward pass.
        cpu_offload: keep the shards in the CPU's memory.
    """

    _: KW_ONLY
    units: Literal["blocks"] | Count = "blocks"
    reshard_after_forward: bool = True
    cpu_offload: bool = False

    shards_parameters = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mesh = self.make_mesh()

    def make_mesh(self) -> "DeviceMesh":
        """The ranks in one row, over which parameters are sharded."""
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(self.device.type, (self.ranks.world_size,), mesh_dim_names=("shard",))

    def apply(self, model: nn.Module, *, compiled: bool) -> None:
        """Shards the model's units and the rest of it, in place; only the shards stay on this rank's device."""
        from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

        for name, parameter in model.named_parameters():
            if parameter.ndim == 0:
                raise ConfigError(f"cannot shard the 0-d parameter {name}: reshape it to [1]")
        if self.sync_batch_norm:
            synchronize_batch_norms(model)
        units = blocks_of(model) if self.units == "blocks" else units_of_size(model, self.units)
        if compiled:
            compile_each(units or [model])
        options: dict[str, Any] = {"mesh": self.mesh, "mp_policy": self.mixed_precision(model)}
        if self.cpu_offload:
            options["offload_policy"] = CPUOffloadPolicy(pin_memory=self.device.type == "cuda")
        for unit in units:  # each goes to the device as a whole, and is sharded before the next one does
            fully_shard(unit, reshard_after_forward=self.reshard_after_forward, **options)
        self.root: FSDPModule = fully_shard(model, **options)
        self.module = model

    def mixed_precision(self, model: nn.Module) -> "MixedPrecisionPolicy":
        """Parameters are gathered in the precision of the computation, gradients summed in float32.

        Batch statistics are kept in float32, and torch's batch norm wants its parameters in that too: a model
        that has any gathers float32, and autocast does the rest.
        """
        from torch.distributed.fsdp import MixedPrecisionPolicy

        keeps_statistics = any(isinstance(module, _NormBase) for module in model.modules())
        if self.compute_dtype is None or keeps_statistics:
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(param_dtype=self.compute_dtype, reduce_dtype=torch.float32)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Without gradients, after which parameters are the shards again."""
        from torch.distributed.fsdp import FSDPModule

        try:
            with torch.no_grad():
                yield
        finally:
            for module in self.module.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()  # or parameters would be the gathered ones until the next backward pass


@STRATEGIES.register("hsdp")
@dataclass(eq=False, repr=False)
class HSDP(FSDP):
    """Several replicas of the model, each sharded as by FSDP over its own ranks; gradients are averaged over replicas.

    Args:
        replicas: how many; None: one a node.
    """

    _: KW_ONLY
    replicas: Count | None = None

    @property
    def gradient_replicas(self) -> int:
        """One rank of each replica."""
        return self.ranks.nodes if self.replicas is None else self.replicas

    def __post_init__(self) -> None:
        if self.ranks.world_size % self.gradient_replicas:
            raise ConfigError(
                f"parallel.replicas={self.gradient_replicas} does not divide the number of ranks, "
                f"{self.ranks.world_size}"
            )
        super().__post_init__()

    def make_mesh(self) -> "DeviceMesh":
        """A row of ranks for each replica."""
        from torch.distributed.device_mesh import init_device_mesh

        shape = (self.gradient_replicas, self.ranks.world_size // self.gradient_replicas)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("replicate", "shard"))

    def micro_batch(self, last: bool) -> AbstractContextManager[object]:
        """Gradients are averaged over replicas in the last micro-batch only; over shards always, which saves memory."""
        self.root.set_requires_all_reduce(last)
        return nullcontext()
