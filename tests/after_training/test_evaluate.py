"""Metrics are those that training wrote, and tables those that scikit-learn makes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from trainer.evaluate.__main__ import main
from trainer.evaluate.predictions import Predictions

Refused = Callable[[int, str], None]


def evaluated(capsys: pytest.CaptureFixture[str], *argv: object) -> dict:
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def recorded(run: Path) -> dict[int, dict[str, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        record["step"]: {name: value for name, value in record.items() if "/" in name}
        for record in records
        if record["kind"] == "evaluation"
    }


def test_metrics_are_those_of_training_to_the_bit(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = recorded(digits)
    for step in (8, 12):
        found = evaluated(capsys, digits, "--step", step)
        assert found["step"] == step
        assert found["metrics"] == before[step]
    assert "test_ema/accuracy" in found["metrics"]
    best = evaluated(capsys, digits, "--best")
    assert best["metrics"]["test/accuracy"] == max(each["test/accuracy"] for each in before.values())


def test_metrics_of_a_language_model(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluated(capsys, text) == {
        "checkpoint": str(text / "checkpoints/step_00000030"),
        "step": 30,
        "metrics": recorded(text)[30],
    }


def test_on_other_batches_and_other_data(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capsys, digits, "data.eval_batch_size=7")
    assert found["metrics"] == pytest.approx(recorded(digits)[12], rel=1e-5)
    found = evaluated(capsys, digits, "--split", "val", "data.holdout=0.25")
    assert found["split"] == "val"
    assert sum(row["count"] for row in found["classes"]) == 359


def test_classes_and_files(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pyarrow import parquet

    table, picture = tmp_path / "of.csv", tmp_path / "confusion.png"
    found = evaluated(capsys, digits, "--predictions", table, "--confusion", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader(table.open()))
    assert (len(rows), rows[0].keys()) == (
        360,
        {"split", "sample", "target", "predicted", "probability", "correct"},
    )
    right = sum(row["correct"] == "True" for row in rows)
    assert right / 360 == pytest.approx(found["metrics"]["test/accuracy"])
    targets, guesses = ([int(row[key]) for row in rows] for key in ("target", "predicted"))
    precision, recall, _, count = precision_recall_fscore_support(targets, guesses, zero_division=0)
    assert [row["precision"] or 0 for row in found["classes"]] == pytest.approx(precision)
    assert [row["recall"] for row in found["classes"]] == pytest.approx(recall)
    assert [row["count"] for row in found["classes"]] == count.tolist()

    assert main([str(digits), "--ema", "--predictions", str(tmp_path / "ema.parquet")]) == 0
    rows = parquet.read_table(tmp_path / "ema.parquet").to_pylist()
    metrics = evaluated_line(capsys.readouterr().out, "test_ema/accuracy")
    assert f"{sum(row['correct'] for row in rows) / 360:.2%}" == metrics


def evaluated_line(shown: str, name: str) -> str:
    return next(line.split("│")[2].strip() for line in shown.splitlines() if f" {name} " in line)


def test_the_confusion_matrix() -> None:
    import torch

    targets, guesses = torch.tensor([0, 2, 2, 1, 0]), torch.tensor([0, 2, 0, 0, 0])
    found = Predictions("test", targets, guesses, torch.ones(5), ["a", "b", "c"])
    assert found.confusion.tolist() == confusion_matrix(targets, guesses).tolist()
    assert [(row["precision"], row["recall"]) for row in found.per_class()] == [(0.5, 1), (None, 0), (1, 0.5)]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--step", "5"], "has no checkpoint of step 5 (known: 4, 8, 12)"),
        (["--split", "tst"], "--split tst does not exist; did you mean test?"),
        (["data.batchsize=3"], "unknown option data.batchsize; did you mean batch_size"),
        (["model.widths=[4]"], "only the data's options can be given"),
        (["data.batch_size=1,2"], "only the data's options can be given"),
        (["data.batch_size"], "cannot read 'data.batch_size'"),
        (["--predictions", "rows.txt"], "must end in .csv or .parquet"),
        (["--confusion", "none/c.png"], "the folder none does not exist"),
        (["--best", "--step", "4"], "not allowed with argument"),
    ],
)
def test_mistakes(arguments: list[str], hint: str, digits: Path, refused: Refused) -> None:
    refused(main([str(digits), *arguments]), hint)


def test_mistakes_about_the_run(text: Path, tmp_path: Path, refused: Refused) -> None:
    refused(main([str(tmp_path / "none")]), "does not exist: give a run directory")
    refused(main([str(text), "--ema"]), "has no averaged weights")
    refused(
        main([str(text), "--confusion", str(tmp_path / "c.png")]),
        "--confusion needs a classifier: model=gpt is none",
    )
    assert list(tmp_path.iterdir()) == []


def test_without_a_package(digits: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    for option, name, package, extra in (
        ("--predictions", "rows.parquet", "pyarrow", "text"),
        ("--confusion", "c.png", "matplotlib", "report"),
    ):
        monkeypatch.setattr("trainer.cli.common.find_spec", lambda name: None)
        refused(main([str(digits), option, name]), f"needs the package {package}: pip install '.[{extra}]'")
