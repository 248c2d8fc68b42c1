"""Metrics: each declares once whether higher is better and how its values are written.

A metric is declared under its own name, such as ``accuracy``, and found by any full name that ends in it, such as
``test/accuracy`` or ``test_ema/accuracy``. A plugin declares its own::

    register_metric("f1", higher_is_better=True, format="percent")

A run's status.json holds the declarations of its metrics, since commands that read it later import no plugins.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from trainer.formatting import number, percent

Format = Literal["plain", "percent", "significant", "integer"]
"""plain: `trainer.formatting.number`; percent: of a share of 1; significant: three digits; integer: rounded."""

_TEXT: dict[Format, Callable[[float], str]] = {
    "plain": number,
    "percent": percent,
    "significant": lambda value: f"{value:.3g}",
    "integer": lambda value: f"{value:.0f}",
}


@dataclass(frozen=True)
class Metric:
    """A metric: its name, its direction and the format of its values."""

    name: str
    higher_is_better: bool = False
    format: Format = "plain"

    def better(self, new: float, old: float | None) -> bool:
        """Whether a value is better than the best one so far; None: there is none yet. Only a finite one can be."""
        if not math.isfinite(new):
            return False
        return old is None or (new > old if self.higher_is_better else new < old)

    def reaches(self, value: float, target: float) -> bool:
        """Whether a value is at least as good as the target; nan is not."""
        return value >= target if self.higher_is_better else value <= target

    def best(self, values: Iterable[float]) -> float:
        """The best of the values; nan if none is a number."""
        choose = max if self.higher_is_better else min
        return choose((value for value in values if not math.isnan(value)), default=math.nan)

    def text(self, value: float) -> str:
        """A value as a person reads it: ``97.22%`` of an accuracy, ``0.1235`` of a loss."""
        return _TEXT[self.format](value)


METRICS: dict[str, Metric] = {}
"""The declared metrics by name, without a split."""


def register_metric(name: str, *, higher_is_better: bool = False, format: Format = "plain") -> Metric:
    """Declares a metric.

    Args:
        name: without a split: ``accuracy``, not ``test/accuracy``.
        higher_is_better: whether the best value is the largest.
        format: how values are written.

    Raises:
        ValueError: the name has a split, the format does not exist, or the metric is declared differently already.
    """
    if "/" in name:
        raise ValueError(f"a metric is declared without its split: {name.rpartition('/')[2]}, not {name}")
    if format not in _TEXT:
        raise ValueError(f"metric {name} has an unknown format {format!r}: take one of {', '.join(_TEXT)}")
    metric = Metric(name, higher_is_better, format)
    if METRICS.setdefault(name, metric) != metric:
        raise ValueError(f"metric {name} is declared already, as {METRICS[name]}")
    return metric


def metric_of(name: str, declared: Mapping[str, Metric] = METRICS) -> Metric:
    """The metric of a full name such as ``test/accuracy``, which it bears.

    One that is not declared is better when lower, and a plain number.
    """
    found = declared.get(name.rpartition("/")[2])
    return replace(found, name=name) if found else Metric(name)


def on_split(name: str, split: str, instead_of: str) -> str:
    """The same metric on another split, for the averaged weights too: ``val_ema/loss`` -> ``test_ema/loss``.

    A name of any other split than ``instead_of`` is returned as it is.
    """
    found, slash, metric = name.rpartition("/")
    base = found.removesuffix("_ema")
    return f"{split}{found.removeprefix(base)}{slash}{metric}" if slash and base == instead_of else name


def declarations(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The declared ones of these metrics, for a file: ``{"accuracy": {"higher_is_better": true, ...}}``."""
    found = {name.rpartition("/")[2] for name in names} & METRICS.keys()
    return {
        name: {"higher_is_better": METRICS[name].higher_is_better, "format": METRICS[name].format}
        for name in sorted(found)
    }


def read_declarations(record: Any) -> dict[str, Metric]:
    """The metrics that `declarations` wrote; what else a damaged file holds is left out."""
    if not isinstance(record, Mapping):
        return {}
    return {
        name: Metric(name, bool(fields.get("higher_is_better")), fields["format"])
        for name, fields in record.items()
        if isinstance(fields, Mapping) and fields.get("format") in get_args(Format)
    }


STEP_PARTS = ("forward_backward", "collectives", "optimizer", "refresh")
"""Shares of the training time under ``profile=parts``. ``refresh`` is the optimizer's step where it refreshes its
curvature, ``optimizer`` the others; ``collectives`` the trainer's all-reduce, in which ranks wait for the slowest one.
What DDP and FSDP send is a part of ``forward_backward``, with which it overlaps."""

register_metric("accuracy", higher_is_better=True, format="percent")
register_metric("top5_accuracy", higher_is_better=True, format="percent")
register_metric("loss")
register_metric("perplexity")
register_metric("grad_norm")
register_metric("lr", format="significant")
register_metric("skipped_steps", format="integer")
register_metric("samples_per_second", higher_is_better=True, format="integer")
register_metric("data_wait", format="percent")
register_metric("flops_per_second", higher_is_better=True, format="significant")
register_metric("mfu", higher_is_better=True, format="percent")
for _part in STEP_PARTS:
    register_metric(_part, format="percent")
register_metric("memory_mib", format="integer")
register_metric("gpu_utilization", format="percent")
register_metric("gpu_watts", format="integer")
register_metric("gpu_memory_mib", format="integer")
register_metric("eval_seconds")
