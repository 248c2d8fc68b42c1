"""AdaHessian: Adam with the diagonal of the Hessian in place of the gradient's square."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from trainer.errors import ConfigError, one_line
from trainer.optim.adafisher.loss_scale import loss_scale
from trainer.optim.base import OPTIMIZERS, FixedGroups, Groups, is_sharded
from trainer.optim.kronecker.preconditioned_sgd import Coverage, StateLayout
from trainer.options import Fraction, NonNegative, Positive


@OPTIMIZERS.register("adahessian")
class AdaHessian(FixedGroups):
    r"""Divides the momentum by the diagonal D of the Hessian H, estimated with one random vector z of signs a step:

        D = |z ⊙ H z|, of a convolution its mean over the kernel, [out, in, 1, 1]
        m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) D²
        θ ← θ − η (m / (1 − β₁ᵗ) / ((v / (1 − β₂ᵗ))^(k/2) + ε) + κ θ)

    H z is the derivative of the gradient: the loss must be differentiated by ``backward(create_graph=True)``, of all
    micro-batches. The trainer does so, and has attention computed by its plain formula, the only one that can be
    differentiated twice. A step takes about four times as long as SGD's.

    Args:
        model: not read; AdaHessian needs no layers.
        params: groups of named parameters.
        lr: learning rate η ≥ 0.
        betas: β₁ and β₂, each 0 ≤ β < 1.
        eps: ε > 0.
        weight_decay: κ ≥ 0, decoupled.
        hessian_power: k, 0 < k; 1 is Newton's step for a diagonal Hessian.

    State of a parameter: ``step``, ``exp_avg`` and ``exp_hessian_diag_sq``, in the shape of D.

    Raises:
        ConfigError: the parameters are sharded; in ``step``, torch has no second derivative of the model.
        RuntimeError: in ``step``, if the gradients have no graph.

    Reference: Yao et al. 2021, arXiv 2006.00719.
    """

    needs_create_graph = True
    needs_refresh = True
    grad_scaler: GradScaler | None = None

    def __init__(
        self,
        model: nn.Module,
        params: Groups,
        *,
        lr: NonNegative = 0.15,
        betas: tuple[Fraction, Fraction] = (0.9, 0.999),
        eps: Positive = 1e-4,
        weight_decay: NonNegative = 5e-4,
        hessian_power: Positive = 1.0,
    ) -> None:
        if is_sharded(params):
            raise ConfigError(
                "optimizer=adahessian differentiates the gradient again, which shards do not allow: use parallel=none"
            )
        options = {"lr": lr, "betas": betas, "eps": eps}
        super().__init__(params, {**options, "weight_decay": weight_decay, "hessian_power": hessian_power})
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param] = {
                    "step": torch.tensor(0.0, device="cpu"),
                    "exp_avg": torch.zeros_like(param, memory_format=torch.preserve_format),
                    "exp_hessian_diag_sq": torch.zeros_like(averaged_over_kernel(param.detach())),
                }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one optimization step and returns what the closure, if any, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        diagonals = self.hessian_diagonals()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                state["step"] += 1
                state["exp_avg"].lerp_(param.grad.detach(), 1 - beta1)
                state["exp_hessian_diag_sq"].lerp_(diagonals[param].square(), 1 - beta2)
                param.mul_(1 - float(group["lr"]) * group["weight_decay"])
                param.sub_(self._update(param, group), alpha=float(group["lr"]))
        return loss

    def hessian_diagonals(self) -> dict[Tensor, Tensor]:
        """D of every parameter that has a gradient; zero where the gradient does not depend on any parameter."""
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        grads = {p: p.grad for p in params if p.grad is not None and p.grad.requires_grad}
        if params and not grads:
            raise RuntimeError(
                "AdaHessian differentiates the gradient again: call loss.backward(create_graph=True)"
            )
        signs = [torch.randint_like(p, 2).mul_(2).sub_(1) for p in grads]
        try:
            with torch.enable_grad():
                products = torch.autograd.grad(
                    [*grads.values()], params, signs, allow_unused=True, materialize_grads=True
                )
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            raise ConfigError(
                f"optimizer=adahessian cannot train this model: {one_line(error).removeprefix('derivative for ')}"
            ) from error
        scale = loss_scale(self.grad_scaler)
        return {
            p: averaged_over_kernel(product.detach().abs() / scale)
            for p, product in zip(params, products, strict=True)
        }

    def _denominator(self, param: Tensor, group: Mapping[str, Any]) -> Tensor:
        state = self.state[param]
        correction = 1 - group["betas"][1] ** state["step"].item()
        return (state["exp_hessian_diag_sq"] / correction).pow(group["hessian_power"] / 2).add_(group["eps"])

    def _update(self, param: Tensor, group: Mapping[str, Any]) -> Tensor:
        state = self.state[param]
        correction = 1 - group["betas"][0] ** state["step"].item()
        return state["exp_avg"] / correction / self._denominator(param, group)

    # Reports

    def coverage(self) -> list[Coverage]:
        """Of every parameter: that it is preconditioned by the Hessian."""
        names = [name for group in self.param_groups for name in group["param_names"]]
        return [Coverage(name, "Hessian diagonal") for name in names]

    def state_layout(self, param: Tensor) -> Mapping[str, StateLayout]:
        """Of every tensor in ``state[param]``, by key: whether it is of the curvature."""
        return {key: StateLayout(key == "exp_hessian_diag_sq") for key in self.state[param]}

    @torch.no_grad()
    def diagnostics(self) -> dict[str, dict[str, float]]:
        """What the curvature does to each parameter that has been updated.

        Returns:
            by name of the parameter: ``preconditioner_min``, ``_median`` and ``_max`` of what the momentum is divided
            by; ``update_ratio``, the norm of an update without weight decay over that of the parameter.
        """
        result = {}
        for group in self.param_groups:
            for param, name in zip(group["params"], group["param_names"], strict=True):
                if not self.state[param]["step"]:
                    continue
                denominator = self._denominator(param, group)
                update, weight = self._update(param, group).norm().item(), param.norm().item()
                result[name] = {
                    "preconditioner_min": denominator.min().item(),
                    "preconditioner_median": denominator.median().item(),
                    "preconditioner_max": denominator.max().item(),
                    "update_ratio": float(group["lr"]) * update / weight if weight else float("inf"),
                }
        return result


def averaged_over_kernel(x: Tensor) -> Tensor:
    """[out, in, height, width] -> [out, in, 1, 1]: the mean over the kernel; anything else as it is."""
    return x.mean((2, 3), keepdim=True) if x.dim() == 4 else x
