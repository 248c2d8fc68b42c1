"""The update of a parameter group: its parameters, gradients and factors as lists, and the fastest way to update them.

On a GPU that is by kernels of Triton; compiled, if asked for; else block by block.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import dtensor, update_blocked, update_compiled
from .mean_squares import has_triton
from .preconditioners import Curvatures
from .state import Tracked, steps_of
from .views import Pair

if TYPE_CHECKING:
    from .update_triton import Kernels


class GroupUpdate:
    """Updates the parameters of a group that have a gradient, until `is_current` says that another one must be made.

    Args:
        group: of the optimizer; its rates are looked up at every step.
        tracked: those of its parameters that have a gradient and are updated here; on one device.
        curvatures: H' and S' of all of them, which stay where they are in memory.
        decoupled: whether weight decay bypasses the preconditioner.
        fused: ``"compile"`` compiles the updates; False does without kernels.
    """

    def __init__(
        self,
        group: dict[str, Any],
        tracked: Sequence[Tracked],
        curvatures: Curvatures,
        *,
        decoupled: bool,
        fused: bool | str | None,
    ) -> None:
        self._group = group
        self._damping = group["damping"]
        self._has_gradient = [param.grad is not None for param in group["params"]]
        self._decoupled = decoupled
        self.owners = [t.param for t in tracked]
        """The parameters as the optimizer has them, which may be sharded."""
        self.is_sharded = any(dtensor.is_sharded(owner) for owner in self.owners)
        self._steps = steps_of(tracked)

        shapes = [dtensor.local_shape(t.param, t.view) for t in tracked]
        self._params = _local_views(self.owners, shapes)
        self._places = [param.data_ptr() for param in self._params]
        self._viewed = [i for i, owner in enumerate(self.owners) if owner.shape != shapes[i]]
        self._exp_avgs = _local_views([t.state["exp_avg"] for t in tracked], shapes)
        self._factors = [curvatures[t.param].local for t in tracked]
        self._dampings = [t.damping for t in tracked]
        self._expected = [curvatures[t.param].expected for t in tracked]
        if tracked:
            sizes = torch.tensor([owner.numel() for owner in self.owners], dtype=self._expected[0].dtype)
            self._sizes = sizes.to(self._expected[0].device, non_blocking=True)
        self._functions: ModuleType = update_compiled if fused == "compile" else update_blocked
        self._kernels = None
        if fused in (None, True):
            self._kernels = gpu_kernels(self._params, self._exp_avgs, self._factors, self._dampings)

    def is_current(self) -> bool:
        """Whether the same parameters still have gradients, and are where they were."""
        grads = [param.grad for param in self._group["params"]]
        params = map(dtensor.local_tensor, self.owners) if self.is_sharded else self.owners
        return (
            self._has_gradient == [grad is not None for grad in grads]
            and self._damping == self._group["damping"]
            and not any(grad.is_sparse for grad in grads if grad is not None)
            and [param.data_ptr() for param in params] == self._places
        )

    def count_step(self) -> None:
        """Adds one to the step of every parameter."""
        self._steps += 1

    def sum_of_squares(self) -> Tensor:
        """Σ u² over the rows of each parameter on this rank, [parameters]."""
        grads, beta = self._grads(), self._group["momentum"]
        if self._kernels:
            return self._kernels.sum_of_squares(grads, beta=beta)
        return self._functions.sum_of_squares(grads, self._exp_avgs, self._factors, self._dampings, beta=beta)

    def normalized_update(self, sums: Tensor | None) -> None:
        """`update.normalized_update` of all parameters, given Σ u² over all rows of each where they are sharded."""
        grads, options = self._grads(), {**self._options(), "sums": sums}
        sizes, expected = self._sizes, torch.stack(self._expected)
        if self._kernels:
            self._kernels.normalized_update(grads, sizes, expected, **options)
            return
        lists = (self._params, grads, self._exp_avgs, self._factors, self._dampings)
        self._functions.normalized_update(*lists, sizes, expected, **options)

    def bias_corrected_update(self) -> None:
        """`update.bias_corrected_update` of all parameters."""
        grads, options = self._grads(), {**self._options(), "decoupled": self._decoupled}
        options["corrections"] = [1 - self._group["momentum"] ** step for step in self._steps.tolist()]
        if self._kernels:
            self._kernels.bias_corrected_update(grads, **options)
            return
        lists = (self._params, grads, self._exp_avgs, self._factors, self._dampings)
        self._functions.bias_corrected_update(*lists, **options)

    def _options(self) -> dict[str, Any]:
        group = self._group
        sign = -1 if group["maximize"] else 1  # of g: the same as that of lr and of what decays
        return {
            "lr": sign * float(group["lr"]),
            "beta": group["momentum"],
            "weight_decay": sign * group["weight_decay"],
        }

    def _grads(self) -> list[Tensor]:
        """Gradients of the rows on this rank, in the shapes of the views."""
        grads: list[Any] = [owner.grad for owner in self.owners]
        if self.is_sharded:
            grads = [dtensor.local_tensor(grad) for grad in grads]
        for i in self._viewed:
            grads[i] = grads[i].view(self._params[i].shape)
        return grads


def _local_views(tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    return [dtensor.local_tensor(tensor).view(shape) for tensor, shape in zip(tensors, shapes, strict=True)]


def gpu_kernels(
    params: list[Tensor],
    exp_avgs: list[Tensor],
    factors: Sequence[Sequence[Pair]],
    dampings: Sequence[float],
) -> "Kernels | None":
    """Kernels of Triton, if there is a GPU, Triton is installed, and they can update these parameters."""
    if not params or not params[0].is_cuda or not has_triton():
        return None
    from .update_triton import Kernels, fits

    return Kernels(params, exp_avgs, factors, dampings) if fits(params, exp_avgs) else None
