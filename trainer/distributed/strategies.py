"""How a model is spread over ranks, from outside the model: DDP, FSDP2 and HSDP by name."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from trainer.distributed.batch_norm import synchronize_batch_norms
from trainer.distributed.ranks import Ranks
from trainer.distributed.wrapping import blocks_of, compile_each, units_of_size
from trainer.errors import ConfigError
from trainer.options import Count, Positive
from trainer.registry import Registry

STRATEGIES = Registry("parallel")
"""Strategies by name: ``make(ranks, device, compute_dtype, *, options...) -> Strategy``."""


@STRATEGIES.register("none")
class Strategy:
    """One process; the base of the strategies.

    Args:
        ranks: the processes that train together.
        device: this rank's.
        compute_dtype: of the forward and backward pass where autocast lowers it; None: that of the parameters.
    """

    needs_rehearsal = False
    """Whether the first backward pass adds gradients up in another order than all later ones."""

    def __init__(self, ranks: Ranks, device: torch.device, compute_dtype: torch.dtype | None) -> None:
        self.ranks = ranks
        self.device = device
        self.compute_dtype = compute_dtype
        self.gradient_replicas = 1
        """Ranks that hold the same gradient."""
        self.module: nn.Module
        """What training calls, once the model is spread."""

    def apply(self, model: nn.Module, *, compiled: bool) -> None:
        """Moves a model to its device or devices, in place: optimizers are made afterwards."""
        model.to(self.device)
        if compiled:
            model.compile()
        self.module = model

    def micro_batch(self, last: bool) -> AbstractContextManager[object]:
        """Around the forward and backward pass of one of a step's micro-batches."""
        return nullcontext()

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Around forward passes without gradients, of the model itself."""
        with torch.no_grad():
            yield


@STRATEGIES.register("ddp")
class DDP(Strategy):
    """The whole model on every rank; gradients are averaged while the backward pass goes on."""

    needs_rehearsal = True  # torch sorts its messages by the order in which gradients came in the first pass

    def __init__(
        self,
        ranks: Ranks,
        device: torch.device,
        compute_dtype: torch.dtype | None,
        *,
        bucket_mb: Positive = 25.0,
        find_unused_parameters: bool = False,
        sync_batch_norm: bool = True,
        timeout: Positive = 600.0,
    ) -> None:
        super().__init__(ranks, device, compute_dtype)
        ranks.start(device, timeout)
        self.bucket_mb = bucket_mb
        self.find_unused_parameters = find_unused_parameters
        self.sync_batch_norm = sync_batch_norm
        self.gradient_replicas = ranks.world_size

    def apply(self, model: nn.Module, *, compiled: bool) -> None:
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

    def micro_batch(self, last: bool) -> AbstractContextManager[object]:
        assert isinstance(self.module, DistributedDataParallel)
        return nullcontext() if last else self.module.no_sync()


@STRATEGIES.register("fsdp")
class FSDP(Strategy):
    """Parameters, gradients and optimizer state cut up over all ranks, gathered unit by unit (FSDP2)."""

    def __init__(
        self,
        ranks: Ranks,
        device: torch.device,
        compute_dtype: torch.dtype | None,
        *,
        units: Literal["blocks"] | Count = "blocks",
        reshard_after_forward: bool = True,
        cpu_offload: bool = False,
        sync_batch_norm: bool = True,
        timeout: Positive = 600.0,
    ) -> None:
        super().__init__(ranks, device, compute_dtype)
        ranks.start(device, timeout)
        self.units = units
        self.reshard_after_forward = reshard_after_forward
        self.cpu_offload = cpu_offload
        self.sync_batch_norm = sync_batch_norm
        self.mesh = self.make_mesh()
        self.root: FSDPModule

    def make_mesh(self) -> DeviceMesh:
        return init_device_mesh(self.device.type, (self.ranks.world_size,), mesh_dim_names=("shard",))

    def apply(self, model: nn.Module, *, compiled: bool) -> None:
        for name, parameter in model.named_parameters():
            if parameter.ndim == 0:
                raise ConfigError(f"parallel=fsdp cannot cut up the scalar {name}: give it the shape [1]")
        if self.sync_batch_norm:
            synchronize_batch_norms(model)
        units = blocks_of(model) if self.units == "blocks" else units_of_size(model, self.units)
        if compiled:
            compile_each(units or [model])
        options: dict[str, Any] = {"mesh": self.mesh, "mp_policy": self.mixed_precision(model)}
        if self.cpu_offload:
            options["offload_policy"] = CPUOffloadPolicy(pin_memory=self.device.type == "cuda")
        for unit in units:  # on their way to the device one by one: only the shards stay there
            fully_shard(unit, reshard_after_forward=self.reshard_after_forward, **options)
        self.root = fully_shard(model, **options)
        self.module = model

    def mixed_precision(self, model: nn.Module) -> MixedPrecisionPolicy:
        """Parameters are gathered in the precision of the computation, gradients summed in float32.

        Batch statistics are kept in float32, and torch's batch norm wants its parameters in that too: a model
        that has any gathers float32, and autocast does the rest.
        """
        keeps_statistics = any(isinstance(module, _NormBase) for module in model.modules())
        if self.compute_dtype is None or keeps_statistics:
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(param_dtype=self.compute_dtype, reduce_dtype=torch.float32)

    @contextmanager
    def inference(self) -> Iterator[None]:
        try:
            with torch.no_grad():
                yield
        finally:
            for module in self.module.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()  # or parameters would be the gathered ones until the next backward pass


@STRATEGIES.register("hsdp")
class HSDP(FSDP):
    """Several copies of the model, each cut up as by FSDP over its own ranks; gradients are averaged over copies."""

    def __init__(
        self,
        ranks: Ranks,
        device: torch.device,
        compute_dtype: torch.dtype | None,
        *,
        replicas: Count | None = None,
        units: Literal["blocks"] | Count = "blocks",
        reshard_after_forward: bool = True,
        cpu_offload: bool = False,
        sync_batch_norm: bool = True,
        timeout: Positive = 600.0,
    ) -> None:
        self.replicas = ranks.nodes if replicas is None else replicas
        if ranks.world_size % self.replicas:
            raise ConfigError(
                f"parallel.replicas={self.replicas} copies do not fit on {ranks.world_size} ranks: "
                f"it must divide their number"
            )
        super().__init__(
            ranks,
            device,
            compute_dtype,
            units=units,
            reshard_after_forward=reshard_after_forward,
            cpu_offload=cpu_offload,
            sync_batch_norm=sync_batch_norm,
            timeout=timeout,
        )
        self.gradient_replicas = self.replicas

    def make_mesh(self) -> DeviceMesh:
        shape = (self.replicas, self.ranks.world_size // self.replicas)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=("replicate", "shard"))

    def micro_batch(self, last: bool) -> AbstractContextManager[object]:
        self.root.set_requires_all_reduce(last)  # the sum over copies can wait, that over shards saves memory
        return nullcontext()
