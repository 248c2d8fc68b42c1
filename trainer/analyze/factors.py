"""Full factors of layers, of which AdaFisher keeps the diagonals.

`trainer.optim.kronecker.rows` has those of Linear and Conv2d, `trainer.analyze.norms` those of norms.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from trainer.analyze.loaded_run import DoesNotFit, Finding, LoadedRun, Settings
from trainer.analyze.norms import Norm, full_norm
from trainer.cli.common import progress
from trainer.optim.adafisher.hooks import Capture
from trainer.optim.adafisher.layers import Layer
from trainer.optim.kronecker.rows import MatrixLayer, full_layer


class KroneckerFactors(NamedTuple):
    """The full factors of a layer."""

    A: Tensor
    """[columns, columns] of the weight, and one more for the bias; [entries, entries] of a norm's scale."""
    G: Tensor
    """[rows, rows] of the weight; [entries, entries] of a norm's scale."""


class FactorOf(NamedTuple):
    """Which factor a matrix is."""

    layer: str
    step: int
    """Of the checkpoint."""
    kind: str
    """``A`` or ``G``."""


def full_factors(
    layers: Mapping[str, MatrixLayer | Norm], backward: Callable[[], None]
) -> dict[str, KroneckerFactors]:
    """A and G by layer.

    Args:
        layers: of Linear, Conv2d and norms, by name, in training mode.
        backward: runs the model forward and backward once or more; the losses are means over their samples and
            add up to the mean over all samples.

    Returns:
        float32 (float64 for float64 layers) factors of the layers that got a gradient.
    """
    known: dict[nn.Module, Layer] = {
        module: full_norm(module) if isinstance(module, Norm) else full_layer(module)
        for module in layers.values()
    }
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


def of_layers(run: LoadedRun, settings: Settings) -> dict[FactorOf, Tensor]:
    """Both factors of the chosen layers at the chosen checkpoints, a layer's together.

    Raises:
        CheckpointError: there is no checkpoint of a step.
        DoesNotFit: no gradient reaches any of the layers.
    """
    layers, batches = run.layers(settings.layers), run.batches(settings.batches)

    def backward() -> None:
        for batch in progress(batches, "factors"):
            (run.loss(run.model(batch[0]), batch) / len(batches)).backward()

    found = {}
    for place in run.places(settings.steps):
        step = run.load(place)
        run.model.train()
        for name, factors in full_factors(layers, backward).items():
            for kind, factor in zip(KroneckerFactors._fields, factors, strict=True):
                found[FactorOf(name, step, kind)] = factor
        run.model.zero_grad()
    if not found:
        raise DoesNotFit(f"no gradient reaches the layers {', '.join(layers)}: choose others with --layers")
    order = list(layers)
    return {key: found[key] for key in sorted(found, key=lambda key: order.index(key.layer))}


def heading(key: FactorOf, factor: Tensor) -> dict[str, Any]:
    """The first columns of a factor's row in a table: its layer, which factor it is, when, its size."""
    return {"layer": key.layer, "factor": key.kind, "step": key.step, "size": len(factor)}


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
