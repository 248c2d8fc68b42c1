"""The rows that linear layers and convolutions multiply, and the full Kronecker factors that they make.

With h the rows that a layer's weight multiplies (samples, tokens, patches; with a 1 appended if there is a bias) and s
the rows of the gradient of the per-sample loss with respect to its output::

    A = mean over rows of h hᵀ        G = mean over rows of s sᵀ        Fisher ≈ T · G ⊗ A

for T rows a sample (Martens and Grosse 2015, arXiv 1503.05671; for convolutions Grosse and Martens 2016, arXiv
1602.01407). The labels are the data's, so that this is the empirical Fisher. AdaFisher keeps the diagonals of A and G.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.optim.adafisher._torch_private import padding_of
from trainer.optim.adafisher.layers import Layer
from trainer.optim.adafisher.mean_squares import factor_dtype
from trainer.optim.adafisher.views import View

MatrixLayer = nn.Linear | nn.Conv2d
"""Layers of which full factors are known."""

ENTRIES_AT_A_TIME = 2**24
"""Most entries of unfolded patches at a time, unless one sample has more."""


def is_matrix_layer(module: nn.Module) -> TypeGuard[MatrixLayer]:
    """Whether full factors of a module are known, which a subclass with a forward of its own need not have."""
    return isinstance(module, MatrixLayer) and type(module).forward in (nn.Linear.forward, nn.Conv2d.forward)


def second_moment(rows: Tensor) -> Tensor:
    """[N, d] -> [d, d]: the mean of row rowᵀ."""
    rows = rows.to(factor_dtype(rows.dtype))
    return rows.T @ rows / len(rows)


def input_rows(module: MatrixLayer, x: Tensor) -> Tensor:
    """The rows that a layer's weight multiplies, those of a sample together: [samples · T, columns (+ 1)].

    Of a convolution they are one for each sample, group and output position.
    """
    if isinstance(module, nn.Linear):
        return with_bias(x.reshape(-1, module.in_features), module)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x if x.dim() == 4 else x[None], padding_of(module), mode=mode)
    unfolded = F.unfold(x, module.kernel_size, module.dilation, stride=module.stride)  # [B, C k, positions]
    rows = unfolded.unflatten(1, (module.groups, -1)).movedim(2, -1)  # [B, groups, positions, columns]
    return with_bias(rows.flatten(0, 2), module)


def gradient_rows(module: MatrixLayer, s: Tensor) -> Tensor:
    """The rows of the gradient with respect to a layer's output, those of a sample together: [samples · T, out]."""
    return s.reshape(-1, s.shape[-1]) if isinstance(module, nn.Linear) else s.movedim(-3, -1).flatten(0, -2)


def with_bias(rows: Tensor, module: MatrixLayer) -> Tensor:
    """The rows [N, columns] with a 1 appended to each if the layer has a bias."""
    return rows if module.bias is None else torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


def columns_of(module: MatrixLayer) -> int:
    """The length of a row that a layer's weight multiplies."""
    return module.weight[0].numel() + (module.bias is not None)


def samples_at_a_time(module: nn.Conv2d, output: torch.Size) -> int:
    """How many samples of a convolution are unfolded at once, by the shape of the output."""
    return max(1, ENTRIES_AT_A_TIME // (output[-2:].numel() * columns_of(module) * module.groups))


def input_moment(module: MatrixLayer, x: Tensor, output: torch.Size) -> Tensor:
    """A of one call: [columns (+ 1), columns (+ 1)]."""
    if isinstance(module, nn.Linear):
        return second_moment(input_rows(module, x))
    x = x if x.dim() == 4 else x[None]
    parts = x.split(samples_at_a_time(module, output))
    moments = [second_moment(input_rows(module, part)) * len(part) for part in parts]
    return torch.stack(moments).sum(0) / len(x)


def layer_of_sizes(
    module: MatrixLayer,
    H: Callable[[Tensor, torch.Size], Tensor],
    S: Callable[[Tensor], Tensor],
    sizes: tuple[tuple[int, ...], tuple[int, ...]],
    **options: Any,
) -> Layer:
    """A layer for `Capture` whose H and S are of these sizes; no parameter is seen to broadcast against them."""
    H_size, S_size = sizes
    view = View((), (), (), S_size, H_size)
    return Layer(type(module).__name__, H, S, {"weight": view}, width=len(module.weight), **options)


def full_layer(module: MatrixLayer) -> Layer:
    """A layer whose H is A and whose S is G, for `Capture`."""
    rows, columns = len(module.weight), columns_of(module)
    sizes = (columns, columns), (rows, rows)

    def S(s: Tensor) -> Tensor:
        return second_moment(gradient_rows(module, s))

    return layer_of_sizes(module, partial(input_moment, module), S, sizes)
