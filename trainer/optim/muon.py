"""Muon for the hidden matrices, AdamW for everything else, as one optimizer."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from trainer._private import _adjust_lr
from trainer.optim.adafisher.layers import own_parameters
from trainer.optim.adafisher.polar import polar_factor
from trainer.optim.adafisher.roles import INPUT_PROJECTIONS, parts_of
from trainer.optim.base import OPTIMIZERS, FixedGroups, Groups, fuses_by_default
from trainer.options import Count, Fraction, NonNegative, Positive

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (https://kellerjordan.github.io/posts/muon/)."""


def split_matrices(
    model: nn.Module, groups: Groups, *, split_qkv: bool = False, output_layer: bool = False
) -> Groups:
    """Splits each group of named parameters in two, which the key ``use_muon`` tells apart; none is empty.

    Hidden matrices are the weights of linear layers, of attention's input projections, and of convolutions,
    which count as [out, in * kernel]. Embeddings, the output layer (the model's last matrix), and grouped
    convolutions, being many small matrices, are not.

    Args:
        split_qkv: fused projections are in groups of their own, whose key ``rows`` has the rows of each part.
        output_layer: the output layer is hidden too, unless it shares its weight with an embedding.
    """
    hidden = _hidden_matrices(model, output_layer)
    if not split_qkv:
        hidden = dict.fromkeys(hidden, ())
    split = []
    for group in groups:
        for rows in (*sorted(set(hidden.values())), None):  # None: no hidden matrix
            params = [(name, p) for name, p in group["params"] if hidden.get(id(p)) == rows]
            parts = {"rows": rows} if rows else {}
            if params:
                split.append({**group, "params": params, "use_muon": rows is not None, **parts})
    return split


def _hidden_matrices(model: nn.Module, output_layer: bool) -> dict[int, tuple[int, ...]]:
    """The rows of each part of a fused projection by the identity of its weight, none of other matrices."""
    matrices: dict[int, tuple[int, ...]] = {}
    others: list[int | None] = []
    last = None
    for path, module in model.named_modules():
        weights: list[Tensor] = []
        match module:
            case nn.Linear() | nn.Conv1d(groups=1) | nn.Conv2d(groups=1) | nn.Conv3d(groups=1):
                weights = [module.weight]
            case nn.MultiheadAttention():
                weights = [p for name, p in own_parameters(module).items() if name in INPUT_PROJECTIONS]
            case nn.Embedding():
                others.append(id(module.weight))
        for weight in weights:
            last, rows = id(weight), tuple(parts_of(path, module, weight))
            matrices[last] = rows if len(rows) > 1 else ()
    if not output_layer:
        others.append(last)
    return {key: rows for key, rows in matrices.items() if key not in others}


@OPTIMIZERS.register("muon")
class MuonAdamW(FixedGroups):
    r"""Orthogonalises the momentum of hidden matrices, and takes AdamW's step for the rest.

    A matrix W [out, in], or a convolution's weight flattened to it, takes ``torch.optim.Muon``'s step

        B ← μ B + (1 − μ) G        W ← (1 − η κ) W − η a NS((1 − μ) G + μ B)

    where NS is the Newton–Schulz iteration towards the nearest semi-orthogonal matrix, and a evens out the
    shapes (``adjust_lr_fn``). Torch always iterates in bfloat16; here that is done where the device is fast at it.

    Args:
        model: says which parameters are hidden matrices; see `split_matrices`.
        params: groups of named parameters.
        lr, momentum, nesterov, ns_steps, adjust_lr_fn: of hidden matrices; see ``torch.optim.Muon``.
        split_qkv: queries, keys and values of a fused projection are matrices of their own.
        output_layer: the output layer is a hidden matrix too, which helps where it is wide, as an autoencoder's.
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
        split_qkv: bool = False,
        output_layer: bool = False,
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
        split = split_matrices(model, params, split_qkv=split_qkv, output_layer=output_layer)
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
            step, rate = _orthogonal(matrix, lr, group)
            p.mul_(1 - lr * group["weight_decay"])
            p.add_(step.reshape(p.shape), alpha=-rate)

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


def _orthogonal(matrix: Tensor, lr: float, group: dict[str, Any]) -> tuple[Tensor, float]:
    """The direction of a step, [rows, columns], that of each part of a fused matrix apart; and its learning rate."""

    def factor(part: Tensor) -> Tensor:
        return polar_factor(part[None], [NEWTON_SCHULZ] * group["ns_steps"], margin=1.0)[0]

    scale = group["adjust_lr_fn"]
    if "rows" not in group:
        return factor(matrix), _adjust_lr(lr, scale, matrix.shape)
    parts = matrix.split(list(group["rows"]))
    return torch.cat(
        [factor(part).to(matrix.dtype) * _adjust_lr(1.0, scale, part.shape) for part in parts]
    ), lr
