"""What divides a step, over training: AdaFisher's F̃ and Adam's second moment of the gradient.

Both are the optimizers' own, from the state in each checkpoint of their runs. For a run of AdaFisher alone, Adam's is
made up at the same weights: the average with weight β₂ of old values, bias-corrected, of the squared gradients of a few
batches, as Adam's would be that started there and stood still. Adam divides by its square root, AdaFisher by F̃ itself.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from trainer.analyze.loaded_run import DoesNotFit, Finding, LoadedRun, Settings, names_of, refuse_others
from trainer.analyze.norms import Norm
from trainer.cli.common import progress
from trainer.optim.kronecker.rows import MatrixLayer
from trainer.optim.protocols import DiagonalPreconditioner

BETA2 = 0.999
MOST_BINS = 60


class Series(NamedTuple):
    """What a line of histograms is of."""

    layer: str
    run: str
    of: str
    """``adafisher`` (F̃), ``adam`` (v̂ in Adam's own run), or ``adam_made_up`` (at AdaFisher's weights)."""


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


def own_second_moment(optimizer: Adam | AdamW, parameter: Tensor) -> Tensor:
    """v̂ = v / (1 − β₂ⁿ) of a parameter after n steps; Adam's weight decay, unlike AdamW's, is in its gradients."""
    state = optimizer.state[parameter]
    group = next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
    return state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"].item())


def own(optimizer: Optimizer) -> tuple[str, Callable[[Tensor], Tensor]] | None:
    """What an optimizer divides by, as `Series.of` names it, and how to get it for a parameter."""
    if isinstance(optimizer, DiagonalPreconditioner):
        return "adafisher", optimizer.preconditioner
    if isinstance(optimizer, Adam | AdamW):
        return "adam", partial(own_second_moment, optimizer)
    return None


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


def row(series: Series, found: dict[int, dict[str, float]]) -> dict[str, Any]:
    """The medians at both ends of training, and every statistic at every checkpoint."""
    first, *_, last = [*found.values()] * 2
    lists = {name: [at[name] for at in found.values()] for name in last}
    ends = {"median_at_first": first["median"], "median_at_last": last["median"]}
    spread = {"percentile_5_at_last": last["percentile_5"], "percentile_95_at_last": last["percentile_95"]}
    return {**series._asdict(), **ends, **spread, "steps": list(found), **lists}


def gradients(
    run: LoadedRun, count: int, layers: Mapping[str, MatrixLayer | Norm]
) -> Iterator[dict[str, Tensor]]:
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


def divisors(
    run: LoadedRun, name: str, settings: Settings, *, alone: bool
) -> Iterator[tuple[Series, int, Tensor]]:
    """What divides the steps of a run's layers, with the step, at each of its checkpoints.

    Args:
        run: of AdaFisher or Adam.
        name: what to call it.
        settings: which layers, and of how many batches Adam's moment is made up.
        alone: make up Adam's beside AdaFisher's.

    Raises:
        DoesNotFit: the run's optimizer divides by neither.
    """
    if (found := own(run.parts.optimizer)) is None:
        name = run.parts.config.optimizer["name"]
        raise DoesNotFit(
            f"--what preconditioner needs runs of AdaFisher, Adam or AdamW: optimizer={name} is none"
        )
    of, divisor = found
    layers = run.layers(settings.layers)
    for place in progress(run.checkpoints, name):
        step = run.load(place)
        for layer, module in layers.items():
            if run.parts.optimizer.state.get(module.weight):  # else it is frozen, or has never had a gradient
                yield Series(layer, name, of), step, divisor(module.weight)
        if alone and of == "adafisher":
            for layer, moment in adam_second_moment(gradients(run, settings.batches, layers)).items():
                yield Series(layer, name, "adam_made_up"), step, moment


def analyse(runs: Sequence[LoadedRun], settings: Settings) -> Finding:
    """Histograms of F̃ and of Adam's second moment at each of the runs' checkpoints.

    Raises:
        ConfigError: the runs are of different models or data.
        DoesNotFit: a run's optimizer is neither AdaFisher nor Adam, or no layer is trained.
    """
    refuse_others(runs)
    found: dict[Series, dict[int, dict[str, float]]] = {}
    shown: dict[Series, dict[int, Histogram]] = {}
    for run, name in zip(runs, names_of(runs), strict=True):
        for series, step, values in divisors(run, name, settings, alone=len(runs) == 1):
            found.setdefault(series, {})[step] = statistics(values)
            shown.setdefault(series, {})[step] = histogram(values)
    if not shown:
        raise DoesNotFit("none of the layers is trained: choose others with --layers")
    return Finding([row(*item) for item in found.items()], shown)
