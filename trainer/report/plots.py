"""Plots of learning curves, medians over a group's finished runs in a band of their range, sensitivities, heat maps."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from trainer.formatting import printable
from trainer.metrics import Metric
from trainer.report.grouping import Group, config_text
from trainer.report.heat_map import Grid, HeatMap, heat_map
from trainer.report.metric_choice import declared_by
from trainer.report.read_runs import RecordedRun
from trainer.report.records import MetricPoint
from trainer.report.sensitivity import Sensitivity
from trainer.report.summary import Report

COLORS = [f"C{i}" for i in range(10)]
STYLES = ["-", "--", "-.", ":"]
LABEL = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.6, "linewidth": 0}
"""Behind text on colours, light or dark."""

LONGEST = 60
"""Characters of a label beside a plot, which takes their room from it."""

Axis = Literal["step", "seconds"]
AXES: dict[Axis, str] = {"step": "optimizer steps", "seconds": "training seconds"}


def plot_all(report: Report, folder: Path) -> list[str]:
    """Plots the report's metric, the training loss, each sensitivity and, where two numbers were swept, a heat map.

    Returns:
        The names of the PNG files, in the folder.
    """
    names = []
    for metric in dict.fromkeys([report.metric, declared_by(report.runs, "train/loss")]):
        if any(curve(run, metric.name) for run in report.runs):
            names.append(f"{file_stem(metric.name)}.png")
            plot(report, metric).savefig(folder / names[-1], dpi=150)
    for each in report.sensitivities:
        names.append(f"{file_stem(each.metric.name)}_against_{file_stem(each.key)}.png")
        plot_sensitivity(each).savefig(folder / names[-1], dpi=150)
    readable = [run for run in report.runs if run.state != "unreadable"]
    if found := heat_map(readable, report.keys, report.metric):
        options = f"{file_stem(found.rows)}_and_{file_stem(found.columns)}"
        names.append(f"{file_stem(found.metric.name)}_over_{options}.png")
        plot_heat_map(found).savefig(folder / names[-1], dpi=150)
    return names


def file_stem(name: str) -> str:
    """``test_accuracy`` of ``test/accuracy``."""
    return re.sub(r"[^\w.,=+-]", "_", name, flags=re.ASCII)[:100]


def literal(text: str) -> str:
    """Text that matplotlib draws as it is, and not as a formula."""
    return printable(text).replace("$", r"\$")


def short_labels(labels: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Labels of one plot: if one is long, without the words that all share, and then with dots for its middle."""
    if max(map(len, labels), default=0) <= longest:
        return list(labels)
    words = [re.split(r"(?<![,:]) ", label) for label in labels]  # a list's or mapping's value is one word
    shared = set.intersection(*map(set, words)) if len(labels) > 1 else set()
    own = [" ".join(word for word in each if word not in shared) for each in words]
    half = (longest - 1) // 2
    return [text if len(text) <= longest else f"{text[:half]}…{text[-half:]}" for text in own]


def curve(run: RecordedRun, metric: str) -> list[MetricPoint]:
    """A metric's values in evaluations or, where it has none, in training; empty if it has neither."""
    return run.evaluations.get(metric) or run.training.get(metric, [])


def plot(report: Report, metric: Metric) -> Figure:
    """A metric against steps and against training seconds."""
    height = max(4.2, 0.5 + 0.22 * len(report.summaries))  # inches: the legend has a line for each group
    figure = Figure(figsize=(11, height), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    labels = short_labels([summary.group.label for summary in report.summaries])
    for panel, axis in zip(panels, AXES, strict=True):
        for number, (summary, label) in enumerate(zip(report.summaries, labels, strict=True)):
            draw_group(panel, summary.group, literal(label), metric.name, axis, line_style(number))
        if report.target is not None and metric == report.metric:
            panel.axhline(report.target, color="0.5", linewidth=0.8, label="target")
        panel.set_xlabel(AXES[axis])
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(literal(metric.name))
    set_scale(panels[0], metric, [point.value for run in report.runs for point in curve(run, metric.name)])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def line_style(number: int) -> dict[str, Any]:
    """Colour and dashes of line ``number``; 40 lines differ."""
    return {"color": COLORS[number % 10], "linestyle": STYLES[number // 10 % 4]}


def plot_sensitivity(sensitivity: Sensitivity) -> Figure:
    """Means against the option's values, in a band from the lowest to the highest, but where a run diverged."""
    height = max(4.2, 0.5 + 0.22 * len(sensitivity.curves))
    figure = Figure(figsize=(8, height), layout="constrained")
    panel = figure.subplots()
    means = [mean for curve in sensitivity.curves for mean in curve.means.values()]
    labels = short_labels([curve.label for curve in sensitivity.curves])
    for number, (curve, label) in enumerate(zip(sensitivity.curves, labels, strict=True)):
        x = list(curve.means)
        panel.plot(
            x,
            list(curve.means.values()),
            marker="o",
            markersize=4,
            label=literal(label),
            **line_style(number),
        )
        low, high = ([end(curve.finals[value]) for value in x] for end in (min, max))
        panel.fill_between(x, low, high, color=line_style(number)["color"], alpha=0.15, linewidth=0)
    values = sorted(value for curve in sensitivity.curves for value in curve.finals)
    if values[0] > 0 and values[-1] >= 10 * values[0]:
        panel.set_xscale("log")
    panel.set_xlabel(literal(sensitivity.key))
    panel.set_ylabel(literal(sensitivity.metric.name))
    panel.grid(alpha=0.3)
    set_scale(panel, sensitivity.metric, means)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def plot_heat_map(found: HeatMap) -> Figure:
    """A panel for each grid, in the same colours; × marks what diverged or failed, ★ the best."""
    shape = len(found.row_values), len(found.column_values)
    width, height = 1 + 0.8 * shape[1], 1.2 + 0.45 * shape[0]  # inches
    figure = Figure(figsize=(len(found.grids) * width + 1.5, height), layout="constrained")
    panels = figure.subplots(1, len(found.grids), sharey=True, squeeze=False)[0]
    means = [mean for grid in found.grids for mean in grid.means.values()] or [0.0]
    wide = found.metric.format != "percent" and min(means) > 0 and max(means) > 10 * min(means)
    colors = {
        "norm": (LogNorm if wide else Normalize)(min(means), max(means)),
        "cmap": "viridis" if found.metric.higher_is_better else "viridis_r",
    }
    titles = short_labels([grid.label for grid in found.grids], longest=int(8 * width))
    for panel, grid, title in zip(panels, found.grids, titles, strict=True):
        image = draw_grid(panel, found, grid, colors)
        panel.set_title(literal(title) if len(found.grids) > 1 else "")
        panel.set_xlabel(literal(found.columns))
    panels[0].set_ylabel(literal(found.rows))
    form = PercentFormatter(1.0) if found.metric.format == "percent" else None
    figure.colorbar(image, ax=panels, label=literal(found.metric.name), format=form)
    return figure


def draw_grid(panel: Axes, found: HeatMap, grid: Grid, colors: dict[str, Any]) -> Any:
    """Draws the cells of a grid with their means; returns the image."""
    values = np.full((len(found.row_values), len(found.column_values)), np.nan)
    means = grid.means
    best = (max if found.metric.higher_is_better else min)(means, key=means.__getitem__, default=None)
    for cell in [*means, *grid.lost]:
        y, x = found.row_values.index(cell[0]), found.column_values.index(cell[1])
        text = "×"
        if cell in means:
            values[y, x] = means[cell]
            text = f"★ {found.metric.text(means[cell])}" if cell == best else found.metric.text(means[cell])
        panel.text(x, y, text, ha="center", va="center", fontsize=7, color="black", bbox=LABEL)
    image = panel.imshow(values, origin="lower", aspect="auto", **colors)
    panel.set_xticks(range(values.shape[1]), map(config_text, found.column_values), rotation=45)
    panel.set_yticks(range(values.shape[0]), map(config_text, found.row_values))
    return image


def draw_group(panel: Axes, group: Group, label: str, metric: str, axis: Axis, style: dict[str, Any]) -> None:
    """Draws a group's median and band, and each unfinished run as a thin line that ends in a cross."""
    finished = [xy for run in group.counted.values() if len(xy := coordinates(curve(run, metric), axis))]
    if finished:
        x, values = on_one_grid(finished)
        panel.plot(x, np.median(values, axis=0), label=f"{label} (n = {len(finished)})", **style)
        panel.fill_between(
            x, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.15, linewidth=0
        )
    for run in group.runs:
        if run.state != "finished" and len(xy := coordinates(curve(run, metric), axis)):
            name = None if finished else f"{label} (unfinished)"
            panel.plot(*xy.T, linewidth=0.7, marker="x", markevery=[-1], label=name, **style)


def coordinates(points: Iterable[MetricPoint], axis: Axis) -> np.ndarray:
    """Steps or seconds, and values, [points, 2]; without points whose time is not known."""
    pairs = [(getattr(point, axis), point.value) for point in points if getattr(point, axis) is not None]
    return np.array(pairs, dtype=float).reshape(-1, 2)


def on_one_grid(curves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Curves [points, 2] on one grid: every x of any of them, from the first that lies within all of them.

    Between its points a curve is linear; after the last it keeps its value, as the trained model does.

    Returns:
        x [P] and values [runs, P].
    """
    start = max(xy[0, 0] for xy in curves)
    x = np.unique(np.concatenate([xy[:, 0] for xy in curves]))
    x = x[x >= start]
    return x, np.stack([np.interp(x, xy[:, 0], xy[:, 1]) for xy in curves])


def set_scale(panel: Axes, metric: Metric, values: Sequence[float]) -> None:
    """Percentages as such; values over more than a decade, such as losses, on a logarithmic scale."""
    finite = [value for value in values if np.isfinite(value)]
    if metric.format == "percent":
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif finite and min(finite) > 0 and max(finite) > 10 * min(finite):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
