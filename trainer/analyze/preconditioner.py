"""What divides a step, over training: AdaFisher's F̃ beside Adam's second moment of the gradient.

F̃ is the optimizer's own, from the state in each checkpoint. Such a run has no second moment: it is taken at each
checkpoint's weights as the average with weight β₂ of old values, bias-corrected, of the squared gradients of a few
batches, as Adam's would be that started there and stood still. Adam divides by its square root, AdaFisher by F̃ itself.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.analyze.loaded_run import DoesNotFit, Finding, LoadedRun, Settings
from trainer.cli.common import progress
from trainer.optim.kronecker.rows import MatrixLayer
from trainer.optim.protocols import DiagonalPreconditioner

BETA2 = 0.999
MOST_BINS = 60


class Histogram(NamedTuple):
    """Of the decimal logarithms of positive numbers."""

    log10: Tensor
    """[bins + 1] edges of the bins."""
    share: Tensor
    """[bins] of all values."""


def adam_second_moment(gradients: Iterable[Mapping[str, Tensor]], beta: float = BETA2) -> dict[str, Tensor]:
    """v̂ = v / (1 − βⁿ) after n gradients, v ← β v + (1 − β) g² from zero."""
    v: dict[str, Tensor] = {}
    rest = 1.0  # βⁿ
    for gradient in gradients:
        rest *= beta
        for name, g in gradient.items():
            v[name] = v.get(name, torch.zeros_like(g)).lerp(g.square(), 1 - beta)
    return {name: value / (1 - rest) for name, value in v.items()}


def histogram(values: Tensor) -> Histogram:
    """Of the decimal logarithms of the positive values; the number of bins is by Rice's rule."""
    logs = values[values > 0].log10().flatten().double().cpu()
    bins = min(MOST_BINS, math.ceil(2 * len(logs) ** (1 / 3)) or 1)
    low, high = (logs.min().item(), logs.max().item()) if len(logs) else (0.0, 0.0)
    edges = torch.linspace(low - 1e-3, high + 1e-3, bins + 1, dtype=torch.float64)
    return Histogram(edges, torch.histogram(logs, edges).hist / values.numel())


def statistics(values: Tensor) -> dict[str, float]:
    """Mean, extremes, median, and percentiles 5 and 95 of all entries."""
    flat = values.flatten().sort().values
    places = {"min": 0.0, "percentile_5": 0.05, "median": 0.5, "percentile_95": 0.95, "max": 1.0}
    quantiles = {name: flat[round(place * (len(flat) - 1))].item() for name, place in places.items()}
    return {**quantiles, "mean": flat.mean().item()}


def row(layer: str, of: str, series: dict[int, dict[str, float]]) -> dict[str, Any]:
    """The medians at both ends of training, and every statistic at every checkpoint."""
    first, *_, last = [*series.values()] * 2
    lists = {name: [at[name] for at in series.values()] for name in last}
    ends = {"median_at_first": first["median"], "median_at_last": last["median"]}
    spread = {"percentile_5_at_last": last["percentile_5"], "percentile_95_at_last": last["percentile_95"]}
    return {"layer": layer, "of": of, **ends, **spread, "steps": list(series), **lists}


def gradients(run: LoadedRun, count: int, layers: Mapping[str, MatrixLayer]) -> Iterator[dict[str, Tensor]]:
    """Gradients of the layers' weights, one an optimizer's batch, at the weights that the model has."""
    parts = run.parts.state.loader.micro_batches
    batches = run.batches(count)
    run.model.train()
    for start in range(0, len(batches), parts):
        for batch in batches[start : start + parts]:
            (run.loss(run.model(batch[0]), batch) / parts).backward()
        weights = {name: layer.weight for name, layer in layers.items()}
        yield {name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None}
        run.parts.optimizer.zero_grad()


def analyse(run: LoadedRun, settings: Settings) -> Finding:
    """Histograms of F̃ and of Adam's second moment at each of the run's checkpoints.

    Raises:
        DoesNotFit: the run's optimizer has no factors.
    """
    optimizer = run.parts.optimizer
    if not isinstance(optimizer, DiagonalPreconditioner):
        name = run.parts.config.optimizer["name"]
        raise DoesNotFit(f"--what preconditioner needs a run of AdaFisher: optimizer={name} has no factors")
    layers = run.layers(settings.layers)
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    shown = {}
    for place in progress(run.checkpoints, "preconditioner"):
        step = run.load(place)
        moments = adam_second_moment(gradients(run, settings.batches, layers))
        for name, moment in moments.items():
            preconditioner = optimizer.preconditioner(layers[name].weight)
            for of, values in ("adafisher", preconditioner), ("adam", moment):
                found.setdefault((name, of), {})[step] = statistics(values)
                shown[name, of, step] = histogram(values)
    if not shown:
        raise DoesNotFit(f"no gradient reaches the layers {', '.join(layers)}: choose others with --layers")
    return Finding([row(*key, series) for key, series in found.items()], shown)
