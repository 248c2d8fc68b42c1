"""Batch norm by the statistics of the whole batch, which the ranks share, on GPUs and on CPUs.

With it a model is the same function of a batch on any number of ranks. ``nn.SyncBatchNorm`` is for GPUs only.
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from trainer._private import _BatchNorm, _disable_dynamo


def synchronize_batch_norms(model: nn.Module) -> None:
    """Makes the model's batch norms share their statistics over all ranks, in place.

    Parameters, buffers, names and hooks stay. With micro-batches the statistics are those of a micro-batch of all
    ranks. A subclass with a ``forward`` of its own cannot be changed: it keeps to its rank, with a warning.
    """
    left = []
    for name, module in model.named_modules():
        if type(module) in SYNCHRONIZED:
            module.__class__ = SYNCHRONIZED[type(module)]
        elif isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm | nn.SyncBatchNorm):
            left.append(f"{name} ({type(module).__name__})")
    if left and dist.get_rank() == 0:
        print(
            f"warning: parallel.sync_batch_norm cannot change {', '.join(left[:3])}{', ...' * (len(left) > 3)}: each "
            f"rank normalizes its own part of the batch there, so that results depend on the number of ranks",
            file=sys.stderr,
        )


class SyncBatchNorm(_BatchNorm):
    """What the synchronized norms of 1, 2 and 3 dimensions share. In ``eval()`` they are torch's."""

    batch_variance: Tensor | None = None
    """float [C]: the variance over the whole batch by which the last training batch was normalized.

    An optimizer that wants the statistics of the layer's input reads them here, as its rank sees a part of it only.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes the ranks' parts of a batch together: [N, C, ...] -> [N, C, ...]; N may differ by rank."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        return self._normalize(input)

    @_disable_dynamo
    def _normalize(self, x: Tensor) -> Tensor:
        mean, variance, count = moments_over_ranks(x)
        self.batch_variance = variance
        if self.running_mean is not None:
            self._update_running_statistics(mean, variance, count)
        return _Normalize.apply(x, self.weight, self.bias, mean, variance, count, self.eps)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        unbiased = variance * (count / (count - 1)).to(variance.dtype)
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.copy_(running * (1 - share) + new * share)


class _SyncBatchNorm1d(SyncBatchNorm, nn.BatchNorm1d):
    pass


class _SyncBatchNorm2d(SyncBatchNorm, nn.BatchNorm2d):
    pass


class _SyncBatchNorm3d(SyncBatchNorm, nn.BatchNorm3d):
    pass


SYNCHRONIZED: dict[type[nn.Module], type[SyncBatchNorm]] = {
    nn.BatchNorm1d: _SyncBatchNorm1d,
    nn.BatchNorm2d: _SyncBatchNorm2d,
    nn.BatchNorm3d: _SyncBatchNorm3d,
}


@torch.no_grad()
def moments_over_ranks(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean [C] and variance [C] of every channel over all ranks' x [N, C, ...], and how many values each has.

    Each rank's own mean and variance are exact to the precision of x; what is summed over ranks is in float64.
    """
    axes = other_axes(x)
    variance, mean = torch.var_mean(at_least_float32(x), axes, correction=0)
    count = mean.new_full((1,), x.numel() / x.shape[1], dtype=torch.float64)
    sums = torch.cat([mean.double() * count, (variance.double() + mean.double() ** 2) * count, count])
    dist.all_reduce(sums)
    total = sums[-1]
    means, squares = (sums[:-1] / total).chunk(2)
    variances = (squares - means**2).clamp_(min=0)
    return means.to(mean.dtype), variances.to(mean.dtype), total


class _Normalize(torch.autograd.Function):
    """Batch norm by given statistics, which depend on the inputs of all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        axes = other_axes(x)
        mean, scale = (channels.view(1, -1, *[1] * (x.dim() - 2)) for channels in (mean, scale))
        normalized = (at_least_float32(x) - mean) * scale
        grad = at_least_float32(grad)
        grad_bias, grad_weight = grad.sum(axes), (grad * normalized).sum(axes)  # DDP and FSDP average these
        sums = torch.cat([grad_bias, grad_weight])
        dist.all_reduce(sums)
        along_ones, along_x = (part.view_as(mean) for part in (sums / count.to(sums.dtype)).chunk(2))
        if weight is not None:
            scale = scale * weight.view_as(scale)
        grad_x = (grad - along_ones - normalized * along_x) * scale
        if weight is None:
            return grad_x.to(x.dtype), *[None] * 6
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), *[None] * 4


def other_axes(x: Tensor) -> list[int]:
    """All axes but that of the channels."""
    return [axis for axis in range(x.dim()) if axis != 1]


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float64 if it is, else in float32."""
    return x if x.dtype == torch.float64 else x.float()
