"""How the metric depends on two options with numeric values at once, such as learning rate and batch size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from trainer.metrics import Metric
from trainer.options import is_number
from trainer.report.grouping import group
from trainer.report.read_runs import RecordedRun
from trainer.report.sensitivity import ended

Cell = tuple[float, float]
"""The values of the option along the rows and of that along the columns."""


@dataclass(frozen=True)
class Grid:
    """The metric over both options, of runs with the same values of the other swept options but for the seed."""

    label: str
    finals: dict[Cell, list[float]]
    """The metric's last value of each run that counts; empty: all have failed. Without what has not ended."""

    @property
    def means(self) -> dict[Cell, float]:
        """Of the cells in which no run has diverged or failed."""
        means = {cell: fmean(values) for cell, values in self.finals.items() if values}
        return {cell: mean for cell, mean in means.items() if math.isfinite(mean)}

    @property
    def lost(self) -> list[Cell]:
        """The cells in which a run has diverged, or all have failed."""
        return [cell for cell in self.finals if cell not in self.means]


@dataclass(frozen=True)
class HeatMap:
    """Grids of a metric over the same two options."""

    metric: Metric
    rows: str
    """The option."""
    columns: str
    row_values: list[float]
    """Ascending; all that occur in a grid."""
    column_values: list[float]
    grids: list[Grid]


def heat_map(runs: Sequence[RecordedRun], keys: Sequence[str], metric: Metric) -> HeatMap | None:
    """The heat map of runs that are grouped by these options; None unless exactly two of them are numbers."""
    numeric = [key for key in keys if all(is_finite(run.config.get(key)) for run in runs)]
    if len(numeric) != 2:
        return None
    rows, columns = numeric
    grids = [
        Grid(each.label, cells(each.runs, rows, columns, metric.name))
        for each in group(runs, [key for key in keys if key not in numeric])
    ]
    tried = [cell for grid in grids for cell in grid.finals]
    row_values, column_values = (sorted({cell[axis] for cell in tried}) for axis in (0, 1))
    if min(len(row_values), len(column_values)) < 2:
        return None
    return HeatMap(metric, rows, columns, row_values, column_values, grids)


def is_finite(value: Any) -> bool:
    """Whether an option's value is a finite number."""
    return is_number(value) and math.isfinite(value)


def cells(runs: Sequence[RecordedRun], rows: str, columns: str, metric: str) -> dict[Cell, list[float]]:
    """The last values of the counted runs of each cell in which any run has ended."""
    groups = {(each.values[rows], each.values[columns]): each for each in group(runs, [rows, columns])}
    found = {cell: ended(each, metric) for cell, each in groups.items()}
    return {cell: values for cell, values in found.items() if values is not None}
