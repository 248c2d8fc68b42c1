"""Published results of recipes, for groups of runs that trained the same model by the same recipe on the same data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from trainer.metrics import Metric
from trainer.report.grouping import Group
from trainer.report.metric_choice import declared_by
from trainer.report.read_runs import RecordedRun

FILE = Path(__file__).with_suffix(".yaml")

SAME = ("experiment", "model", "data", "seed")
"""Typed words that choose among published results, and so are no departure from them."""
NO_MATTER = ("name=", "device=", "hydra.", "monitor.", "checkpoint.", "data.download=", "data.num_workers=")
"""Beginnings of words by which nothing else is learnt."""


@dataclass(frozen=True)
class Sample:
    """A mean over seeds."""

    mean: float
    deviation: float | None
    """Standard deviation over seeds; None: not known."""


@dataclass(frozen=True)
class PublishedResult:
    """What was published for a recipe, and what its runs gave here."""

    group: str
    source: str
    metric: Metric
    published: Sample
    here: Sample | None
    """The metric's last values; None: no finished run has one."""
    seeds: int
    """Runs in ``here``."""
    departures: list[str]
    """Typed words that change the recipe, of any of the runs."""


@cache
def published_tables() -> Sequence[Mapping[str, Any]]:
    """The tables of published.yaml."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def published_results(groups: Sequence[Group]) -> list[PublishedResult]:
    """One for each of the groups of which something was published."""
    return [found for group in groups if (found := published_result(group))]


def published_result(group: Group) -> PublishedResult | None:
    """What was published for the runs of a group; None if that is nothing, or not the same for all of them."""
    cells = [published_for(run) for run in group.runs]
    if cells[0] is None or any(cell != cells[0] for cell in cells):
        return None
    table, cell = cells[0]
    metric = declared_by(group.runs, table["metric"])
    points = [run.evaluations.get(metric.name) for run in group.counted.values()]
    finals = [found[-1].value for found in points if found]
    return PublishedResult(
        group=group.label,
        source=table["source"],
        metric=metric,
        published=cell,
        here=Sample(fmean(finals), stdev(finals) if len(finals) > 1 else None) if finals else None,
        seeds=len(finals),
        departures=list(dict.fromkeys(word for run in group.runs for word in departures(run))),
    )


def published_for(run: RecordedRun) -> tuple[Mapping[str, Any], Sample] | None:
    """The table and its cell for a run's recipe, model and data; None for one in quick size."""
    typed = dict(word.split("=", 1) for word in run.typed if "=" in word)
    recipe, model = typed.get("experiment"), run.config.get("model.name")
    if "quick" in typed:
        return None
    for table in published_tables():
        fits = all((run.config.get(key) or False) == value for key, value in table["where"].items())
        if fits and recipe in table["recipes"] and model in table["results"]:
            cell = table["results"][model][table["recipes"].index(recipe)]
            if cell is None:
                return None
            mean, deviation = cell if isinstance(cell, list) else (cell, None)
            return table, Sample(mean, deviation)
    return None


def departures(run: RecordedRun) -> list[str]:
    """The words typed for a run that change what its recipe says."""
    return [
        word
        for word in run.typed
        if word.partition("=")[0] not in SAME and not word.lstrip("+~").startswith(NO_MATTER)
    ]
