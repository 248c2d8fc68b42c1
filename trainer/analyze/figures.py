"""The figure of each analysis."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import LogLocator
from torch import Tensor

from trainer.analyze.factors import FactorOf, diagonal_energy
from trainer.analyze.gershgorin import Discs
from trainer.analyze.landscape import Plane
from trainer.analyze.preconditioner import Histogram, Series
from trainer.analyze.spectrum import Spectrum
from trainer.analyze.trajectories import Map


class OfLayer(Protocol):
    """A key that says which layer something is of."""

    @property
    def layer(self) -> str:
        """Its name."""


Key = TypeVar("Key", bound=OfLayer)
Shown = TypeVar("Shown")

MOST_LAYERS = 12
"""Rows of layers in a figure."""
DECADES = 6
"""Length of a logarithmic colour scale, below the largest value."""
LEVELS = 25
"""Contour levels of a landscape."""
LINEAR_BELOW = 1e-3
"""Share of the largest eigenvalue below which the axis is linear, so that it can show negative ones too."""
BEFORE, AFTER = "C0", "C3"


def panels(rows: int, columns: int, width: float = 4.6, height: float = 3.6) -> tuple[Figure, np.ndarray]:
    """A figure with [rows, columns] axes, each of this size in inches."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def of_few_layers(found: Mapping[Key, Shown]) -> dict[Key, Shown]:
    """What is of the first layer, the last one and some between: a figure has no room for more than `MOST_LAYERS`."""
    layers = list(dict.fromkeys(key.layer for key in found))
    places = np.linspace(0, len(layers) - 1, min(len(layers), MOST_LAYERS))
    few = {layers[round(place)] for place in places}
    return {key: value for key, value in found.items() if key.layer in few}


def by_layer(found: Mapping[FactorOf, Any], each: int = 1) -> tuple[Figure, dict[FactorOf, np.ndarray]]:
    """A figure with a row for each layer, and its factors side by side; [each] axes of every factor."""
    layers = list(dict.fromkeys(key.layer for key in found))
    columns = list(dict.fromkeys(key[1:] for key in found))
    figure, grid = panels(len(layers), each * len(columns))
    starts = {key: each * columns.index(key[1:]) for key in found}
    return figure, {key: grid[layers.index(key.layer), start : start + each] for key, start in starts.items()}


def heat_map(figure: Figure, panel: Axes, matrix: Tensor, label: str) -> None:
    """Draws absolute values on a logarithmic colour scale."""
    values = matrix.abs().double().cpu().numpy()
    top = values.max() or 1.0
    low = top * 10**-DECADES
    image = panel.imshow(values.clip(low), norm=LogNorm(low, top), cmap="magma", interpolation="nearest")
    figure.colorbar(image, ax=panel, label=label, extend="min").minorticks_off()


def factors(found: Mapping[FactorOf, Tensor]) -> Figure:
    """A heat map of each factor."""
    found = of_few_layers(found)
    figure, at = by_layer(found)
    for key, factor in found.items():
        [panel] = at[key]
        heat_map(figure, panel, factor, "absolute value")
        panel.set_title(f"{title(key)}\n{100 * diagonal_energy(factor):.1f} % of energy on the diagonal")
    return figure


def spectrum(found: Mapping[FactorOf, Spectrum]) -> Figure:
    """Two heat maps of the Fourier transform of each factor, before and after noise."""
    found = of_few_layers(found)
    figure, at = by_layer(found, each=2)
    for key, spectrum in found.items():
        before, after = at[key]
        heat_map(figure, before, spectrum.before, "magnitude")
        heat_map(figure, after, spectrum.after, "magnitude")
        before.set_title(f"{title(key)}\nsignal to noise {decibels(spectrum.ratio)}")
        after.set_title(f"{title(key)}, with noise\n{decibels(spectrum.published_ratio)} as published")
        for panel in (before, after):
            panel.set_xlabel("frequency, 0 in the middle")
    return figure


def title(key: FactorOf) -> str:
    """Which factor a panel is of."""
    return f"{key.layer}: {key.kind} at step {key.step}"


def decibels(ratio: float | None) -> str:
    """A signal-to-noise ratio."""
    return "-" if ratio is None else f"{ratio:.1f} dB"


def gershgorin(found: Mapping[FactorOf, tuple[Discs, Discs]]) -> Figure:
    """For each factor the discs in the complex plane, and the eigenvalues in descending order."""
    found = of_few_layers(found)
    figure, grid = panels(len(found), 2)
    for (left, right), (key, pair) in zip(grid, found.items(), strict=True):
        for discs, color, label in zip(pair, (BEFORE, AFTER), ("before", "after noise"), strict=True):
            circles = [
                Circle((c, 0), r) for c, r in zip(discs.centres.tolist(), discs.radii.tolist(), strict=True)
            ]
            left.add_collection(PatchCollection(circles, facecolor="none", edgecolor=color, alpha=0.25))
            marker = {"marker": "x" if color == AFTER else "o", "markersize": 4, "linestyle": "none"}
            zeros = np.zeros(len(discs.eigenvalues))
            left.plot(discs.eigenvalues, zeros, color=color, label=label, markerfacecolor="none", **marker)
            order = range(1, len(discs.eigenvalues) + 1)
            right.plot(
                order, discs.eigenvalues.flip(0), color=color, label=label, markerfacecolor="none", **marker
            )
        left.axis("equal")
        left.set(title=f"Gershgorin discs of {title(key)}", xlabel="real", ylabel="imaginary")
        right.set(title=f"eigenvalues of {title(key)}", xlabel="number")
        threshold = max(pair[0].eigenvalues[-1].item() * LINEAR_BELOW, 1e-300)
        right.set_yscale("symlog", linthresh=threshold)
        right.legend(frameon=False)
    return figure


def preconditioner(found: Mapping[Series, Mapping[int, Histogram]]) -> Figure:
    """A row for each layer, a column for each run's F̃ or v̂: a line per checkpoint, lighter with time."""
    names = {"adafisher": "F̃", "adam": "v̂", "adam_made_up": "v̂ made up at the weights"}
    found = of_few_layers(found)
    layers = list(dict.fromkeys(series.layer for series in found))
    columns = list(dict.fromkeys(series[1:] for series in found))
    color = colors(sorted({step for histograms in found.values() for step in histograms}))
    figure, grid = panels(len(layers), len(columns))
    lines = {}
    for series, histograms in found.items():
        first, panel = grid[layers.index(series.layer)][[0, columns.index(series[1:])]]
        for step, histogram in histograms.items():
            lines[step] = panel.stairs(histogram.share, histogram.log10, color=color[step])
        if panel is not first:
            panel.sharex(first)
        panel.set(title=f"{series.layer}: {names[series.of]} of {series.run}", ylabel="share of the entries")
        panel.set_xlabel("log₁₀ of the value")
        panel.grid(alpha=0.3)
    steps = sorted(lines)
    shown = sorted({steps[round(i)] for i in np.linspace(0, len(steps) - 1, min(len(steps), 12))})
    figure.legend(
        [lines[step] for step in shown],
        [f"step {step}" for step in shown],
        loc="outside right upper",
        frameon=False,
    )
    return figure


def colors(steps: Sequence[int]) -> dict[int, Any]:
    """A colour for each step, dark to light."""
    return {step: colormaps["viridis"](i / max(1, len(steps) - 1) * 0.9) for i, step in enumerate(steps)}


def contours(figure: Figure, panel: Axes, x: Tensor, y: Tensor, losses: Tensor) -> None:
    """Draws losses [len(y), len(x)] on a logarithmic colour scale, with lines of equal loss."""
    values = np.ma.masked_invalid(losses.numpy())
    low, high = max(float(values.min()), 1e-12), max(float(values.max()), 2e-12)
    norm = LogNorm(low, max(high, 1.01 * low))
    levels = np.geomspace(low, max(high, 1.01 * low), LEVELS)
    filled = panel.contourf(x, y, values.clip(low), levels, norm=norm, cmap="viridis", extend="both")
    panel.contour(x, y, values.clip(low), levels[::2], norm=norm, colors="white", linewidths=0.4)
    bar = figure.colorbar(filled, ax=panel, label="training loss", ticks=LogLocator(subs=(1, 2, 5)))
    bar.minorticks_off()
    bar.ax.yaxis.set_major_formatter("{x:.3g}")


def landscape(found: Sequence[Plane]) -> Figure:
    """The loss over each plane, with the checkpoint at 0 and, where there is one, the path of training."""
    figure, grid = panels(1, len(found), 5.6, 4.6)
    titles = {
        "random": "two filter-normalised random directions",
        "trajectory": "the trajectory's principal directions",
    }
    for panel, plane in zip(grid[0], found, strict=True):
        contours(figure, panel, plane.x, plane.y, plane.losses)
        if plane.path is not None:
            panel.plot(*plane.path.T, color="C1", marker=".", linewidth=1)
        panel.plot(0, 0, color="C3", marker="*", markersize=11)
        panel.set_title(titles[plane.name])
        for axis, share in zip((panel.xaxis, panel.yaxis), plane.explained or (), strict=False):
            axis.set_label_text(f"{100 * share:.1f} % of the way")
    return figure


def trajectories(found: Map) -> Figure:
    """The loss over the plane with a line for each run: a dot is a checkpoint, a star the last one."""
    figure, grid = panels(1, 1, 7.4, 5.2)
    panel = grid[0, 0]
    contours(figure, panel, found.x, found.y, found.losses)
    for number, (name, path) in enumerate(found.paths.items()):
        color = f"C{number + 1}"
        panel.plot(*path.T, color=color, marker=".", markersize=3, linewidth=1.2, label=name)
        panel.plot(*path[-1], color=color, marker="*", markersize=12, markeredgecolor="white")
    panel.set(xlabel=found.labels[0], ylabel=found.labels[1])
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


FIGURES: dict[str, Callable[[Any], Figure]] = {
    "factors": factors,
    "gershgorin": gershgorin,
    "spectrum": spectrum,
    "preconditioner": preconditioner,
    "landscape": landscape,
    "trajectories": trajectories,
}
