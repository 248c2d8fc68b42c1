"""Full Kronecker factors of layers, of which AdaFisher keeps the diagonals; see `trainer.optim.kronecker.rows`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from trainer.analyze.loaded_run import DoesNotFit, Finding, LoadedRun, Settings
from trainer.cli.common import progress
from trainer.optim.adafisher.hooks import Capture
from trainer.optim.adafisher.layers import Layer
from trainer.optim.kronecker.rows import MatrixLayer, full_layer


class KroneckerFactors(NamedTuple):
    """The full factors of a layer."""

    A: Tensor
    """[columns, columns] of the weight, and one more for the bias."""
    G: Tensor
    """[rows, rows] of the weight."""


def full_factors(
    layers: Mapping[str, MatrixLayer], backward: Callable[[], None]
) -> dict[str, KroneckerFactors]:
    """A and G by layer.

    Args:
        layers: of Linear and Conv2d, by name, in training mode.
        backward: runs the model forward and backward once or more; the losses are means over their samples and
            add up to the mean over all samples.

    Returns:
        float32 (float64 for float64 layers) factors of the layers that got a gradient.
    """
    known: dict[nn.Module, Layer] = {module: full_layer(module) for module in layers.values()}
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
