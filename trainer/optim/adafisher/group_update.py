"""What updates a group's parameters until the next refresh, in the fastest way there is.

On a GPU by kernels of Triton; compiled, if asked for; else block by block.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.optim.adafisher import dtensor, update
from trainer.optim.adafisher.mean_squares import has_triton
from trainer.optim.adafisher.update import Pair

if TYPE_CHECKING:
    from trainer.optim.adafisher.update_triton import Kernels


class Work:
    """The parameters of a group that have a gradient, with their state and factors.

    Args:
        group: of the optimizer; its rates are looked up at every step.
        states: of the parameters that have a gradient; so are the other lists.
        shapes: in which the rows here broadcast against the factors.
        factors: H' and S' of the rows here.
        decoupled: weight decay.
        compile: the updates.
    """

    def __init__(
        self,
        group: dict[str, Any],
        states: list[dict[str, Any]],
        shapes: list[tuple[int, ...]],
        factors: list[list[Pair]],
        dampings: list[float],
        *,
        decoupled: bool,
        compile: bool,
    ) -> None:
        self.group = group
        self.damping = group["damping"]
        self.present = [param.grad is not None for param in group["params"]]
        self.owners = [param for param in group["params"] if param.grad is not None]
        self.sizes = [owner.numel() for owner in self.owners]
        self.steps = torch.stack([state["step"] for state in states]) if states else torch.empty(0)
        for state, step in zip(states, self.steps.unbind(), strict=True):
            state["step"] = step  # a view, so that all are counted at once
        self.params = _cut(self.owners, shapes)
        self.places = [param.data_ptr() for param in self.params]
        self.sharded = any(dtensor.is_sharded(owner) for owner in self.owners)
        self.viewed = [i for i, owner in enumerate(self.owners) if owner.shape != shapes[i]]
        self.exp_avgs = _cut([state["exp_avg"] for state in states], shapes)
        self.factors = factors
        self.dampings = dampings
        self.decoupled = decoupled
        self.compile = compile
        self.kernels = (
            None if compile else gpu_kernels(self.params, self.exp_avgs, factors, dampings, self.sizes)
        )

    def holds(self) -> bool:
        """Whether the same parameters still have gradients, and are where they were."""
        grads = [param.grad for param in self.group["params"]]
        return (
            self.present == [grad is not None for grad in grads]
            and self.damping == self.group["damping"]
            and not any(grad.is_sparse for grad in grads if grad is not None)
            and [
                p.data_ptr()
                for p in (map(dtensor.local_tensor, self.owners) if self.sharded else self.owners)
            ]
            == self.places
        )

    def grads(self) -> list[Tensor]:
        """Of the rows here."""
        grads = [owner.grad for owner in self.owners]
        if self.sharded:
            grads = [dtensor.local_tensor(grad) for grad in grads]
        for i in self.viewed:
            grads[i] = grads[i].view(self.params[i].shape)
        return grads

    def measured(self, grads: list[Tensor]) -> Tensor:
        """Σ u² of the rows here, [parameters]."""
        beta = self.group["beta"]
        if self.kernels:
            return self.kernels.measured(grads, beta=beta)
        measure = update.compiled(update.measured_graph) if self.compile else update.measured
        return measure(grads, self.exp_avgs, self.factors, self.dampings, beta=beta)

    def calibrated(self, grads: list[Tensor], squares: Tensor | None) -> None:
        """Updates as the rule does. ``squares``: Σ u² of all rows, where there are others elsewhere."""
        options: dict[str, Any] = {
            "lr": float(self.group["lr"]),
            "beta": self.group["beta"],
            "weight_decay": self.group["weight_decay"],
            "squares": squares,
        }
        if self.kernels:
            self.kernels.calibrated(grads, **options)
        else:
            lists = (self.params, grads, self.exp_avgs, self.factors, self.dampings)
            update.calibrated(*lists, sizes=self.sizes, compile=self.compile, **options)

    def momentum(self, grads: list[Tensor]) -> None:
        """Updates as the two other rules do."""
        lr, beta = float(self.group["lr"]), self.group["beta"]
        options = {
            "lr": lr,
            "beta": beta,
            "weight_decay": self.group["weight_decay"],
            "decoupled": self.decoupled,
            "step_sizes": [lr / (1 - beta**step) for step in self.steps.tolist()],
        }
        if self.kernels:
            self.kernels.momentum(grads, **options)
        else:
            apply = update.compiled(update.momentum_graph) if self.compile else update.momentum
            apply(self.params, grads, self.exp_avgs, self.factors, self.dampings, **options)


def _cut(tensors: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
    return [dtensor.local_tensor(tensor).view(shape) for tensor, shape in zip(tensors, shapes, strict=True)]


def gpu_kernels(params: list[Tensor], exp_avgs: list[Tensor], *lists: Any) -> "Kernels | None":
    """Kernels of Triton, where there is a GPU, Triton is installed, and the parameters are such as they can update."""
    if not params or not params[0].is_cuda or not has_triton():
        return None
    from trainer.optim.adafisher.update_triton import Kernels, fits

    return Kernels(params, exp_avgs, *lists) if fits(params, exp_avgs) else None
