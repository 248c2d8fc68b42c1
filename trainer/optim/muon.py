"""Muon for the hidden matrices, AdamW for everything else, as one optimizer."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from trainer._private import _adjust_lr
from trainer.optim.adafisher.polar import polar_factor
from trainer.optim.base import OPTIMIZERS, Groups, fuses_by_default
from trainer.options import Count, Fraction, NonNegative, Positive

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (https://kellerjordan.github.io/posts/muon/)."""


def split_matrices(model: nn.Module, groups: Groups) -> Groups:
    """Splits each group of named parameters in two, which the key ``use_muon`` tells apart; none is empty.

    Hidden matrices are the weights of linear layers, of attention's input projections, and of convolutions,
    which count as [out, in * kernel]. Embeddings, the output layer (the model's last matrix), and grouped
    convolutions, being many small matrices, are not.
    """
    hidden = _hidden_matrices(model)
    split = []
    for group in groups:
        for use_muon in (True, False):
            params = [(name, p) for name, p in group["params"] if (id(p) in hidden) == use_muon]
            if params:
                split.append({**group, "params": params, "use_muon": use_muon})
    return split


def _hidden_matrices(model: nn.Module) -> set[int]:
    matrices: list[Tensor] = []
    embeddings: list[Tensor] = []
    for module in model.modules():
        match module:
            case nn.Linear():
                matrices.append(module.weight)
            case nn.Conv1d(groups=1) | nn.Conv2d(groups=1) | nn.Conv3d(groups=1):
                matrices.append(module.weight)
            case nn.MultiheadAttention() if module.in_proj_weight is not None:
                matrices.append(module.in_proj_weight)
            case nn.Embedding():
                embeddings.append(module.weight)
    output = matrices[-1:]
    return {id(p) for p in matrices} - {id(p) for p in [*embeddings, *output]}


@OPTIMIZERS.register("muon")
class MuonAdamW(Optimizer):
    r"""Orthogonalises the momentum of hidden matrices, and takes AdamW's step for the rest.

    A matrix W [out, in], or a convolution's weight flattened to it, takes ``torch.optim.Muon``'s step

        B ← μ B + (1 − μ) G        W ← (1 − η κ) W − η a NS((1 − μ) G + μ B)

    where NS is the Newton–Schulz iteration towards the nearest semi-orthogonal matrix, and a evens out the
    shapes (``adjust_lr_fn``). Torch always iterates in bfloat16; here that is done where the device is fast at it.

    Args:
        model: says which parameters are hidden matrices; see `split_matrices`.
        params: groups of named parameters.
        lr, momentum, nesterov, ns_steps, adjust_lr_fn: of hidden matrices; see ``torch.optim.Muon``.
        adamw_lr, betas, eps, fused: of the others; see ``torch.optim.AdamW``. ``adamw_lr`` is None: as ``lr``, on whose
            scale ``match_rms_adamw`` puts Muon's. ``fused`` is None: where torch can.
        weight_decay: decoupled, of both.

    References: https://kellerjordan.github.io/posts/muon/ and arXiv 2502.16982.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Groups,
        *,
        lr: NonNegative = 1e-2,
        momentum: Fraction = 0.95,
        nesterov: bool = True,
        ns_steps: Count = 5,
        adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
        adamw_lr: NonNegative | None = None,
        betas: tuple[Fraction, Fraction] = (0.9, 0.95),
        eps: Positive = 1e-8,
        weight_decay: NonNegative = 0.1,
        fused: bool | None = None,
    ) -> None:
        if fused is None and fuses_by_default(params):
            fused = True
        of_muon: dict[str, Any] = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
        of_muon |= {"ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
        of_adamw = {"lr": lr if adamw_lr is None else adamw_lr, "betas": betas, "eps": eps, "fused": fused}
        split = split_matrices(model, params)
        groups = [{**(of_muon if group["use_muon"] else of_adamw), **group} for group in split]
        super().__init__(groups, {"weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Performs one optimization step and returns what the closure, if any, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in params]
            if group["use_muon"]:
                self._muon_step(group, params, grads)
            else:
                self._adamw_step(group, params, grads)
        return loss

    def _muon_step(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        lr, momentum = float(group["lr"]), group["momentum"]
        for p, grad in zip(params, grads, strict=True):
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffer = state["momentum_buffer"]
            buffer.lerp_(grad, 1 - momentum)
            update = grad.lerp(buffer, momentum) if group["nesterov"] else buffer
            matrix = update.flatten(1)  # [out, in, *kernel] -> [out, in * kernel]
            step = polar_factor(matrix[None], [NEWTON_SCHULZ] * group["ns_steps"], margin=1.0)[0]
            p.mul_(1 - lr * group["weight_decay"])
            p.add_(step.reshape(p.shape), alpha=-_adjust_lr(lr, group["adjust_lr_fn"], matrix.shape))

    def _adamw_step(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                device = p.device if group["fused"] else "cpu"
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=device),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        adamw(
            params,
            grads,
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            [],
            [self.state[p]["step"] for p in params],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
