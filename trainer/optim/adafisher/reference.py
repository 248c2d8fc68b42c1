"""The orthogonal and the calibrated rule to be read: one device, no shards, no kernels, every row in memory.

Change a rule here first. `AdaFisher` must then take the same steps: ``tests/optim/adafisher/test_reference.py``.
The notation is that of arXiv 2405.16397: a layer's weight W multiplies the rows h, and s are the rows of the gradient
of the per-sample loss at the layer's output. N rows of B samples give

    H = mean(h²) [columns]        S = mean(s²) [rows]        Fisher[i, j] ≈ S[i] H[j]
"""

from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from .polar import POLAR_EXPRESS

Norm = nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d


class Factors(NamedTuple):
    """Of one layer: H, S, and N / B²."""

    H: Tensor
    S: Tensor
    row_weight: float


def input_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """The rows h, with a 1 for the bias at their end: [N, columns (+ 1)]; of grouped convolutions [groups, N, ...]."""
    match layer:
        case nn.Embedding():
            return functional.one_hot(x.reshape(-1), layer.num_embeddings).to(layer.weight)
        case nn.LayerNorm():
            return functional.layer_norm(x, layer.normalized_shape, eps=layer.eps).flatten(0, -2)
        case nn.GroupNorm():
            return channels_last(functional.group_norm(x, layer.num_groups, eps=layer.eps))
        case nn.BatchNorm2d():
            return channels_last(functional.batch_norm(x, None, None, training=True, eps=layer.eps))
        case nn.Linear():
            rows = x.flatten(0, -2)
        case nn.Conv2d(padding=tuple(padding)):
            patches = functional.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
            groups = patches.unflatten(1, (layer.groups, -1))  # [B, groups, columns, positions]
            rows = groups.permute(1, 0, 3, 2).flatten(1, 2).squeeze(0)
        case _:
            raise TypeError(f"the reference does not know {type(layer).__name__}")
    return rows if layer.bias is None else functional.pad(rows, (0, 1), value=1.0)


def output_rows(layer: nn.Module, s: Tensor) -> Tensor:
    """The rows s, from the gradient of the batch's mean loss at the layer's output: [N, rows]."""
    spatial = isinstance(layer, nn.Conv2d | nn.GroupNorm | nn.BatchNorm2d)
    rows = channels_last(s) if spatial else s.flatten(0, -2)
    return rows * len(s)  # of each sample's loss, not of their mean


def channels_last(x: Tensor) -> Tensor:
    """[B, C, ...] -> [N, C]."""
    return x.movedim(1, -1).flatten(0, -2)


def fisher(layer: nn.Module, name: str, H: Tensor, S: Tensor) -> Tensor:
    """S ⊗ H in the shape of the layer's weight or bias."""
    shape = layer.get_parameter(name).shape
    if isinstance(layer, Norm):  # one entry a channel; the shift multiplies ones
        return S * H if name == "weight" else S
    if isinstance(layer, nn.Embedding):  # what is looked up is a row: [vocabulary, width]
        return torch.outer(H, S)
    groups = H.shape[0] if H.dim() == 2 else 1
    product = S.view(groups, -1, 1) * H.view(groups, 1, -1)  # [groups, rows of one, columns (+ 1)]
    return (product[..., : shape[1:].numel()] if name == "weight" else product[..., -1]).reshape(shape)


def mean_of_layer(layer: nn.Module, name: str, H: Tensor, S: Tensor) -> Tensor:
    """The mean of S ⊗ H over the layer's weight and bias together, []."""
    return S.mean() if isinstance(layer, Norm) and name == "bias" else S.mean() * H.mean()


class AdaFisherReference(torch.optim.Optimizer):
    """In every step, with sums over the layers that share a parameter θ, which has gradient g:

        F = Σ S ⊗ H / Σ mean S mean H + λ    m ← β m + (1 − β) g        n = β m + (1 − β) g        u = n / F
        G = Σ N/B² S ⊗ H                     a = √mean G / max F
        ε = 3e-4 a min(1, median over all parameters of rms(u) / a)
        θ ← (1 − η κ) θ − η 0.2 u / max(rms(u), ε)

    In every ``update_interval``-th step, the first included, H and S are averaged with weight γ of the old ones, and
    the averages corrected for their start.

    G is the mean square of a gradient whose rows have random signs, so that a is at most what it makes of rms(u). A
    parameter far below it has only rounding noise for a gradient, as the bias before a batch norm has, and stays. If
    all are below it, the gradients were clipped.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-2,
        beta: float = 0.9,
        damping: float = 0.01,
        gamma: float = 0.95,
        weight_decay: float = 1e-2,
        update_interval: int = 10,
    ) -> None:
        super().__init__(model.parameters(), {"lr": lr, "weight_decay": weight_decay})
        self.beta, self.damping, self.gamma, self.update_interval = beta, damping, gamma, update_interval
        self.steps = self.refreshes = 0
        self.captured: dict[nn.Module, Factors] = {}
        self.averages: dict[nn.Module, Factors] = {}
        self.names = {layer: name for name, layer in model.named_modules()}
        self.uses: dict[Tensor, list[tuple[nn.Module, str]]] = {p: [] for p in model.parameters()}
        for layer in model.modules():
            own = dict(layer.named_parameters(recurse=False))
            for name, param in own.items():
                self.uses[param].append((layer, name))
            if own:
                layer.register_forward_hook(self.capture)

    def capture(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Takes the factors of a layer: H now, S when the gradient of its output arrives."""
        H = input_rows(layer, inputs[0].detach()).square().mean(-2)

        def with_gradient(s: Tensor) -> None:
            rows = output_rows(layer, s)
            self.captured[layer] = Factors(H, rows.square().mean(0), len(rows) / len(s) ** 2)

        output.register_hook(with_gradient)

    def refresh(self) -> None:
        """Takes the captured factors into the averages."""
        self.refreshes += 1
        weight = (1 - self.gamma) / (1 - self.gamma**self.refreshes)  # 1 in the first refresh
        for layer, new in self.captured.items():
            old = self.averages.get(layer, new)
            self.averages[layer] = Factors(
                old.H.lerp(new.H, weight), old.S.lerp(new.S, weight), new.row_weight
            )

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Updates all parameters, each of which must have a gradient."""
        if self.steps % self.update_interval == 0:
            self.refresh()
        self.steps += 1
        group = self.param_groups[0]
        self.descend(group["params"], group["lr"], group["weight_decay"])

    def descend(self, params: list[Tensor], lr: float, weight_decay: float) -> None:
        """Takes the step of some parameters."""
        updates = {p: self.update(p) for p in params}
        typical = torch.stack([rms(u) / expected for u, expected in updates.values()]).median().clamp(max=1)
        for p, (u, expected) in updates.items():
            p.mul_(1 - lr * weight_decay)
            p.sub_(lr * 0.2 * u / rms(u).maximum(3e-4 * typical * expected))

    def update(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Returns u and a of a parameter, whose momentum takes in the gradient."""
        relative, G = self.curvature(p)
        F = self.preconditioner(p, relative)
        return self.look_ahead(p) / F, G.mean().sqrt() / F.max()

    def look_ahead(self, p: Tensor) -> Tensor:
        """Returns n of a parameter, whose momentum takes in the gradient."""
        m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
        m.lerp_(p.grad, 1 - self.beta)
        return m.lerp(p.grad, 1 - self.beta)

    def curvature(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Σ S ⊗ H / Σ mean S mean H, and G."""
        F, G, mean = torch.zeros_like(p), torch.zeros_like(p), p.new_zeros(())
        for layer, name in self.uses[p]:
            H, S, row_weight = self.averages[layer]
            F += fisher(layer, name, H, S)
            G += row_weight * fisher(layer, name, H, S)
            mean += mean_of_layer(layer, name, H, S)
        return F / mean, G

    def preconditioner(self, p: Tensor, relative: Tensor) -> Tensor:
        """F of a parameter, from the first of its `curvature`."""
        return relative + self.damping


class OrthogonalReference(AdaFisherReference):
    """``rule="orthogonal"``: weights of linear layers and convolutions are matrices W [rows, columns].

    Their n is split into blocks of at most 128 rows, of equal size but for one row; a block ends where a group of a
    convolution does, or the queries, keys or values of attention. With F = Σ S ⊗ H / Σ mean S mean H as above, which is
    F₁ [rows] and F₂ [columns] in the mean over columns and over rows (of a convolution's group):

        O = U Vᵀ of every block U Σ Vᵀ of n         u = O / √((F₁ + 0.1) (F₂ + 0.1))
        W ← (1 − η κ) W − η 0.2 u / rms(u)

    All others take calibrated steps: norms, biases, positions, and matrices of which a side is under 4. Those of
    other embeddings, also as output layers, are rooted: their F is √F₁ + λ, since a row's gradient is as rare as its
    token.
    """

    def descend(self, params: list[Tensor], lr: float, weight_decay: float) -> None:
        """Takes the step of some parameters."""
        matrices = [p for p in params if self.is_matrix(p)]
        for p in matrices:
            u = self.orthogonal_update(p)
            p.mul_(1 - lr * weight_decay)
            p.sub_(lr * 0.2 * u / rms(u))
        super().descend([p for p in params if not self.is_matrix(p)], lr, weight_decay)

    def is_embedding(self, p: Tensor) -> bool:
        """Whether a parameter is that of an embedding, among others."""
        return any(isinstance(layer, nn.Embedding) for layer, _ in self.uses[p])

    def is_matrix(self, p: Tensor) -> bool:
        """Whether a parameter takes orthogonal steps."""
        if p.dim() < 2 or self.is_embedding(p):
            return False
        return min(len(p) // self.parts(p), p[0].numel()) >= 4

    def parts(self, p: Tensor) -> int:
        """How many parts of a matrix's rows are apart: groups; queries, keys and values where rows are 3 x columns."""
        layer, _ = self.uses[p][0]
        return layer.groups if isinstance(layer, nn.Conv2d) else 3 if len(p) == 3 * p[0].numel() else 1

    def preconditioner(self, p: Tensor, relative: Tensor) -> Tensor:
        """F of a parameter, from the first of its `curvature`."""
        if not self.is_embedding(p) or any("pos" in self.names[layer] for layer, _ in self.uses[p]):
            return super().preconditioner(p, relative)
        return relative.mean(1, keepdim=True).sqrt() + self.damping

    def orthogonal_update(self, p: Tensor) -> Tensor:
        """Returns u of a matrix, whose momentum takes in the gradient."""
        blocks = [
            block
            for part in self.look_ahead(p).flatten(1).chunk(self.parts(p))
            for block in part.tensor_split(-(-len(part) // 128))
        ]
        polars = torch.cat([polar(block) for block in blocks]).view_as(p)
        relative, _ = self.curvature(p)
        layer, _ = self.uses[p][0]
        F = relative.reshape(layer.groups if isinstance(layer, nn.Conv2d) else 1, -1, p[0].numel())
        return polars / ((F.mean(2, keepdim=True) + 0.1) * (F.mean(1, keepdim=True) + 0.1)).sqrt().view_as(p)


def polar(X: Tensor) -> Tensor:
    """U Vᵀ of X = U Σ Vᵀ, nearly."""
    X = X / (1.02 * X.norm()).clamp(min=1e-30)
    for a, b, c in POLAR_EXPRESS:
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X


def rms(x: Tensor) -> Tensor:
    """The root of the mean square, []."""
    return x.square().mean().sqrt()
