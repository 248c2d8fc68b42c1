"""Schedule-free AdamW and SGD (arXiv 2405.15682): the average of the weights takes the place of a schedule.

Three sequences of weights: z takes the optimizer's steps, x is the average of z, by which the model is evaluated, and
gradients are those at ``y = (1 - β) z + β x``::

    z <- z - lr (d(y) + weight_decay y)
    x <- (1 - c) x + c z,  c = lr² / sum of lr² so far

d is the gradient, which AdamW divides by ``sqrt(v / (1 - β₂^t)) + eps``, v the average of its square. Use
``schedule=constant``, with a warm-up, which c gives less weight. Running statistics of batch norms are those at y.

So far it is the authors' package, ``schedulefree``. Two things differ: where a schedule lowers the rate, c has that
rate, as in the paper, not the largest so far; a parameter counts its own steps, as in torch's Adam, not its group's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer.distributed.dtensor import local_tensor
from trainer.optim.base import OPTIMIZERS, Groups
from trainer.options import Fraction, NonNegative, Positive


class ScheduleFree(Optimizer):
    """Base of both. The parameters are y in training and x between `eval` and `train`, each exactly as without it.

    Args:
        params: groups of parameters.
        defaults: ``lr``, ``beta`` and ``weight_decay``, and what the direction needs.
    """

    def __init__(self, params: Groups, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self.is_training = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Moves z, then x, then the parameters to the new y; returns what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, group)
        return loss

    def _step_one(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"], state["weights"] = (
                0,
                0.0,
            )  # no tensors, which loading would round to the parameter's type
            state["z"], state["x"] = parameter.clone(), parameter.clone()
        lr = float(group["lr"])
        state["step"] += 1
        state["weights"] += lr**2
        y, z, x = (local_tensor(tensor) for tensor in (parameter, state["z"], state["x"]))
        direction = self._direction(parameter, group)
        z.add_(direction, alpha=-lr).add_(y, alpha=-lr * group["weight_decay"])
        x.lerp_(z, lr**2 / state["weights"] if state["weights"] else 1.0)
        torch.lerp(z, x, group["beta"], out=y)

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """What a step takes off z, over lr: of this rank's rows."""
        assert parameter.grad is not None
        return local_tensor(parameter.grad)

    @torch.no_grad()
    def eval(self) -> None:
        """Gives the model x, to be evaluated and saved."""
        self.is_training = False
        for parameter, state in self.state.items():
            local_tensor(parameter).copy_(local_tensor(state["x"]))

    @torch.no_grad()
    def train(self) -> None:
        """Gives the model y, to be trained."""
        self.is_training = True
        for group in self.param_groups:
            for parameter in group["params"]:
                if state := self.state.get(parameter):
                    z, x = local_tensor(state["z"]), local_tensor(state["x"])
                    torch.lerp(z, x, group["beta"], out=local_tensor(parameter))


class ScheduleFreeAdamW(ScheduleFree):
    """See the module."""

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state, grad, beta2 = self.state[parameter], super()._direction(parameter, group), group["beta2"]
        if "v" not in state:
            state["v"] = torch.zeros_like(parameter)
        v = local_tensor(state["v"])
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        return grad / (v / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])


@OPTIMIZERS.register("schedulefree_adamw")
def schedulefree_adamw(
    model: nn.Module,
    params: Groups,
    *,
    lr: NonNegative = 2.5e-3,
    beta: Fraction = 0.9,
    beta2: Fraction = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Optimizer:
    """Schedule-free AdamW.

    Args:
        model: is not needed.
        params: groups of parameters.
        lr: learning rate, >= 0; one to ten times that of AdamW with a schedule.
        beta: how near to the average gradients are taken, from 0 to 1.
        beta2: decay of the average of the gradient's square.
        eps: added to the denominator.
        weight_decay: each step takes lr * weight_decay of y off z.
    """
    defaults = {"lr": lr, "beta": beta, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    return ScheduleFreeAdamW(params, defaults)


@OPTIMIZERS.register("schedulefree_sgd")
def schedulefree_sgd(
    model: nn.Module,
    params: Groups,
    *,
    lr: NonNegative = 1.0,
    beta: Fraction = 0.9,
    weight_decay: NonNegative = 0.0,
) -> Optimizer:
    """Schedule-free SGD; its arguments are those of `schedulefree_adamw`, its rates ten to fifty times SGD's."""
    return ScheduleFree(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})
