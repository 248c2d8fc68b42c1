"""Full Kronecker factors of layers, of which an optimizer such as AdaFisher keeps the diagonals.

With h the rows that a layer's weight multiplies (samples, tokens, patches; with a 1 appended if there is a bias) and s
the rows of the gradient of the per-sample loss with respect to its output::

    A = mean over rows of h hᵀ        G = mean over rows of s sᵀ        Fisher ≈ G ⊗ A

(Martens and Grosse 2015, arXiv 1503.05671; for convolutions Grosse and Martens 2016, arXiv 1602.01407, up to the
number of positions.) The labels are the data's, so that this is the empirical Fisher.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.analyze.loaded_run import DoesNotFit, Finding, Known, LoadedRun, Settings
from trainer.cli.common import progress
from trainer.optim.adafisher.hooks import Capture
from trainer.optim.adafisher.layers import Layer
from trainer.optim.adafisher.mean_squares import factor_dtype

ENTRIES_AT_A_TIME = 2**24
"""Most entries of unfolded patches at a time, unless one sample has more."""


class KroneckerFactors(NamedTuple):
    """The full factors of a layer."""

    A: Tensor
    """[columns, columns] of the weight, and one more for the bias."""
    G: Tensor
    """[rows, rows] of the weight."""


def second_moment(rows: Tensor) -> Tensor:
    """[N, d] -> [d, d]: the mean of row rowᵀ."""
    rows = rows.to(factor_dtype(rows.dtype))
    return rows.T @ rows / len(rows)


def linear_rows(module: nn.Linear, x: Tensor) -> Tensor:
    """The rows that a linear layer's weight multiplies: [..., columns] -> [N, columns (+ 1)]."""
    return with_bias(x.reshape(-1, module.in_features), module)


def patches(module: nn.Conv2d, x: Tensor) -> Tensor:
    """The rows that a convolution's weight multiplies, one for each sample, group and output position.

    [B, C, H, W] -> [N, columns (+ 1)].
    """
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    unfolded = F.unfold(x, module.kernel_size, module.dilation, stride=module.stride)  # [B, C k, positions]
    rows = unfolded.unflatten(1, (module.groups, -1)).movedim(2, -1)  # [B, groups, positions, columns]
    return with_bias(rows.flatten(0, 2), module)


def with_bias(rows: Tensor, module: Known) -> Tensor:
    """The rows [N, columns] with a 1 appended to each if the layer has a bias."""
    return rows if module.bias is None else torch.cat([rows, rows.new_ones(len(rows), 1)], 1)


def kronecker_layer(module: Known) -> Layer:
    """A layer whose H is A and whose S is G, for `Capture`."""
    if isinstance(module, nn.Linear):
        out = module.out_features

        def A_linear(x: Tensor, output: torch.Size) -> Tensor:
            return second_moment(linear_rows(module, x))

        return Layer("Linear", A_linear, lambda s: second_moment(s.reshape(-1, out)), {})

    def A_convolution(x: Tensor, output: torch.Size) -> Tensor:
        x = x if x.dim() == 4 else x[None]
        sample = output[-2:].numel() * module.weight.numel() // module.out_channels * module.groups
        parts = x.split(max(1, ENTRIES_AT_A_TIME // sample))
        return torch.stack([second_moment(patches(module, part)) * len(part) for part in parts]).sum(0) / len(
            x
        )

    return Layer("Conv2d", A_convolution, lambda s: second_moment(s.movedim(-3, -1).flatten(0, -2)), {})


def full_factors(layers: Mapping[str, Known], backward: Callable[[], None]) -> dict[str, KroneckerFactors]:
    """A and G by layer.

    Args:
        layers: of Linear and Conv2d, by name, in training mode.
        backward: runs the model forward and backward once or more; the losses are means over their samples and
            add up to the mean over all samples.

    Returns:
        float32 (float64 for float64 layers) factors of the layers that got a gradient.
    """
    known: dict[nn.Module, Layer] = {module: kronecker_layer(module) for module in layers.values()}
    capture = Capture(known)
    capture.attach()
    try:
        backward()
    finally:
        capture.detach()
    seen = capture.collect(1.0, per_sample=True)
    return {
        name: KroneckerFactors(seen[module].H, seen[module].S)
        for name, module in layers.items()
        if module in seen
    }


def diagonal_energy(factor: Tensor) -> float:
    """The share, 0 to 1, of the diagonal in the sum of all squared entries."""
    return (factor.diagonal().square().sum() / factor.square().sum()).item()


def of_layers(run: LoadedRun, settings: Settings) -> dict[tuple[str, str], Tensor]:
    """Both factors of the chosen layers, by the layer's name and ``A`` or ``G``.

    Raises:
        DoesNotFit: no gradient reaches any of them.
    """
    layers, batches = run.layers(settings.layers), run.batches(settings.batches)

    def backward() -> None:
        for batch in progress(batches, "factors"):
            (run.loss(run.model(batch[0]), batch) / len(batches)).backward()

    run.model.train()
    found = full_factors(layers, backward)
    run.model.zero_grad()
    if not found:
        raise DoesNotFit(f"no gradient reaches the layers {', '.join(layers)}: choose others with --layers")
    return {
        (name, kind): factor
        for name, factors in found.items()
        for kind, factor in zip(KroneckerFactors._fields, factors, strict=True)
    }


def heading(key: tuple[str, str], factor: Tensor) -> dict[str, Any]:
    """The first columns of a factor's row in a table: its layer, which factor it is, its size."""
    return {"layer": key[0], "factor": key[1], "size": len(factor)}


def analyse(run: LoadedRun, settings: Settings) -> Finding:
    """The factors as heat maps, and the share of their energy on the diagonal."""
    factors = of_layers(run, settings)
    rows = [
        {
            **heading(key, factor),
            "mean_diagonal": factor.diagonal().mean().item(),
            "diagonal_energy": diagonal_energy(factor),
        }
        for key, factor in factors.items()
    ]
    return Finding(rows, factors)
