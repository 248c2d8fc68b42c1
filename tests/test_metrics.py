"""Which metrics are better when higher, how they are written, and what a run's status.json says of them."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.metrics import (
    METRICS,
    Metric,
    declarations,
    metric_of,
    on_split,
    read_declarations,
    register_metric,
)
from trainer.rundir.status import read_status, write_status


@pytest.fixture
def f1() -> Iterator[Metric]:
    """As a plugin declares it."""
    yield register_metric("f1", higher_is_better=True, format="percent")
    METRICS.pop("f1", None)


@pytest.mark.parametrize(
    ("name", "higher", "text"),
    [
        ("test/accuracy", True, "97.22%"),
        ("test_ema/accuracy", True, "97.22%"),
        ("accuracy", True, "97.22%"),
        ("test/loss", False, "0.9722"),
        ("train/perplexity", False, "0.9722"),
        ("lr", False, "0.972"),
        ("memory_mib", False, "1"),
        ("val/inaccuracy", False, "0.9722"),
        ("accuracy/loss", False, "0.9722"),
    ],
)
def test_a_metric_is_found_by_the_last_part_of_its_name(name: str, higher: bool, text: str) -> None:
    metric = metric_of(name)
    assert (metric.name, metric.higher_is_better, metric.text(0.9722)) == (name, higher, text)


@pytest.mark.parametrize(
    ("metric", "values", "better"),
    [
        ("test/accuracy", [0.1, 0.3, 0.3, 0.2, 0.4], [True, True, False, False, True]),
        ("test/loss", [2.0, math.nan, 1.0, 1.5, 0.5], [True, False, True, False, True]),
        ("val/perplexity", [math.nan, 9.0, 8.0], [False, True, True]),
    ],
)
def test_better_than_the_best_so_far(metric: str, values: list[float], better: list[bool]) -> None:
    best, found = None, []
    for value in values:
        found.append(metric_of(metric).better(value, best))
        best = value if found[-1] else best
    assert found == better
    assert metric_of(metric).best(values) == best


def test_no_value_is_the_best_of_none() -> None:
    assert math.isnan(metric_of("test/loss").best([math.nan]))


def test_reaching_a_target() -> None:
    assert [metric_of("test/accuracy").reaches(value, 0.5) for value in (0.4, 0.5, 0.6, math.nan)] == [
        *(False, True, True, False)
    ]
    assert [metric_of("test/loss").reaches(value, 0.5) for value in (0.4, 0.5, 0.6, math.nan)] == [
        *(True, True, False, False)
    ]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("val/loss", "test/loss"),
        ("val_ema/loss", "test_ema/loss"),
        ("test/interval", "test/interval"),
        ("validity/loss", "validity/loss"),
        ("train/val", "train/val"),
        ("val", "val"),
    ],
)
def test_the_same_metric_on_another_split(name: str, found: str) -> None:
    assert on_split(name, "test", instead_of="val") == found


def test_what_a_plugin_declares(f1: Metric) -> None:
    assert f1.better(0.6, 0.5)
    assert metric_of("test_ema/f1").text(0.5) == "50.00%"
    register_metric("f1", higher_is_better=True, format="percent")  # as a plugin that is imported twice
    with pytest.raises(ValueError, match="f1 is declared already"):
        register_metric("f1")


def test_wrong_declarations() -> None:
    with pytest.raises(ValueError, match="without its split: f1, not test/f1"):
        register_metric("test/f1")
    with pytest.raises(ValueError, match="unknown format 'per cent': take one of plain, percent"):
        register_metric("bleu", format="per cent")  # type: ignore[arg-type]
    assert "bleu" not in METRICS


def test_a_status_declares_its_metrics_to_who_does_not_know_them(tmp_path: Path, f1: Metric) -> None:
    write_status(tmp_path, "finished", metrics={"test/f1": 0.5, "test/bleu": 0.3, "test/loss": math.nan})
    METRICS.pop("f1")
    assert not metric_of("test/f1").higher_is_better
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["declared"].keys() == {"f1", "loss"}
    assert metric_of("test/f1", read_declarations(status["declared"])) == Metric("test/f1", True, "percent")
    write_status(tmp_path, "failed", metrics=status["metrics"], declared=status["declared"])
    assert "f1" in read_status(tmp_path)["declared"], "they are kept by whoever adds to a status"


@pytest.mark.parametrize("damaged", [None, [], "f1", {"f1": None}, {"f1": {"format": "odd"}}])
def test_damaged_declarations_are_left_out(damaged: object) -> None:
    assert read_declarations(damaged) == {}


def test_undeclared_metrics_are_not_written() -> None:
    assert declarations(["test/accuracy", "test/bleu"]) == {
        "accuracy": {"higher_is_better": True, "format": "percent"}
    }
