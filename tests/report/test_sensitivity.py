"""Curves of the metric against what was swept over numbers."""

import re
from pathlib import Path

import pytest

from tests.report.fake import write_run
from tests.report.test_report import PNG, report, shown
from trainer.report.read_runs import read_runs
from trainer.report.summary import make_report

NAN = float("nan")
CURVES = {"adamw": {1e-4: 0.7, 1e-3: 0.9, 1e-2: 0.8}, "sgd": {1e-3: 0.5, 1e-2: 0.6, 1e-1: 0.7, 1.0: NAN}}


def write_sweep(folder: Path, curves: dict[str, dict[float, float]], seeds: int = 1, **options) -> None:
    for name, curve in curves.items():
        for lr, value in curve.items():
            for seed in range(seeds):
                optimizer = {"name": name, "lr": lr}
                write_run(
                    folder / f"{name}_{lr}_{seed}",
                    [value + 0.01 * seed],
                    optimizer=optimizer,
                    seed=seed,
                    **options,
                )


def curves(found: dict) -> dict[str, dict]:
    (sensitivity,) = found["sensitivities"]
    assert sensitivity["option"] == "optimizer.lr"
    return {curve["group"]: curve for curve in sensitivity["curves"]}


def test_a_curve_for_each_optimizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path, CURVES, seeds=3)
    found = curves(report(capsys, tmp_path))
    assert list(found) == ["adamw", "sgd"]
    assert (found["adamw"]["best"], found["adamw"]["at_edge"]) == (1e-3, False)
    assert found["adamw"]["points"] == [
        {"value": lr, "mean": pytest.approx(mean + 0.01), "runs": 3} for lr, mean in CURVES["adamw"].items()
    ]
    assert found["sgd"]["best"] == 0.1
    assert found["sgd"]["points"][-1] == {"value": 1.0, "mean": None, "runs": 3}
    text = shown(capsys, tmp_path)
    assert "│ 0.001 │ ★ 91.00% │ 51.00% │" in text
    assert "│ 1.0 │ – │ diverged │" in text


def test_a_best_value_at_the_edge_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path, {"adamw": CURVES["adamw"], "sgd": {1e-3: 0.5, 1e-2: 0.6, 1e-1: 0.7}})
    found = report(capsys, tmp_path)
    assert curves(found)["sgd"]["at_edge"]
    edges = [note for note in found["notes"] if "edge" in note]
    assert edges == [
        "The best optimizer.lr of sgd, 0.1, is at the edge of the values tried: a better one may lie beyond."
    ]


def test_a_lower_loss_is_the_better_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path, {"adamw": {1e-4: 0.7, 1e-3: 0.9, 1e-2: 0.8}}, metric="val/loss")
    assert curves(report(capsys, tmp_path))["all"]["best"] == 1e-4


def test_failed_runs_are_part_of_the_curve_and_running_ones_not_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path, {"adamw": CURVES["adamw"]})
    write_run(tmp_path / "failed", [], optimizer={"name": "adamw", "lr": 1.0}, state="failed")
    write_run(tmp_path / "running", [0.1], optimizer={"name": "adamw", "lr": 0.5}, state="running")
    points = curves(report(capsys, tmp_path))["all"]["points"]
    assert [point["value"] for point in points] == [1e-4, 1e-3, 1e-2, 1.0]
    assert points[-1] == {"value": 1.0, "mean": None, "runs": 0}
    assert "│ 1.0 │ failed │" in shown(capsys, tmp_path)


def test_a_pruned_value_was_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path, {"adamw": {1e-4: 0.6, 1e-3: 0.9}})
    write_run(
        tmp_path / "pruned", [0.1], optimizer={"name": "adamw", "lr": 0.5}, state="pruned", error="by asha"
    )
    (curve,) = curves(report(capsys, tmp_path)).values()
    assert [point["value"] for point in curve["points"]] == [1e-4, 1e-3, 0.5]
    assert (curve["best"], curve["at_edge"]) == (1e-3, False)
    page = shown(capsys, tmp_path)
    assert re.search(r"│ 0\.5 +│ pruned +│", page)
    assert re.search(r"│ pruned │ 10 +│ 10\.00% │ by asha │", page)


def test_two_values_or_words_are_no_curve(tmp_path: Path) -> None:
    write_sweep(tmp_path / "two", {"adamw": {1e-4: 0.7, 1e-3: 0.9}})
    for number, size in enumerate(([8], [16], [32])):
        write_run(tmp_path / "lists" / str(number), [0.5], model__widths=size)
    for folder in ("two", "lists"):
        assert (
            make_report(read_runs([tmp_path / folder]), by=None, metric=None, target=None).sensitivities == []
        )


def test_two_options_have_a_set_of_curves_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for lr in (0.1, 0.2, 0.3):
        for size in (8, 16, 32):
            options = {"optimizer__lr": lr, "data__batch_size": size}
            write_run(tmp_path / f"{lr}_{size}", [lr + size / 100], **options)
    by_size, by_lr = report(capsys, tmp_path)["sensitivities"]
    assert [by_size["option"], by_lr["option"]] == ["data.batch_size", "optimizer.lr"]
    assert [curve["group"] for curve in by_lr["curves"]] == ["batch_size=8", "batch_size=16", "batch_size=32"]


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path / "runs", CURVES)
    shown(capsys, tmp_path / "runs", "--out", tmp_path / "out")
    name = "test_accuracy_against_optimizer.lr.png"
    assert (tmp_path / "out" / name).read_bytes().startswith(PNG)
    page = (tmp_path / "out" / "report.md").read_text()
    assert f"]({name})" in page
    assert "| 0.001 | ★ 90.00% | 50.00% |" in page


def test_steps_and_seconds_of_each_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "fast", [0.1] * 20)
    write_run(tmp_path / "slow", [0.1] * 10, step_seconds=0.02, optimizer__name="slow")
    fast, slow = report(capsys, tmp_path)["groups"]
    assert (fast["steps"], fast["seconds"]) == (200, 2.0)
    assert (slow["steps"], slow["seconds"]) == (100, 2.0)
    assert "│ slow │ 100 │ 2 s │ 20 ms │ × 2.00 │" in shown(capsys, tmp_path)
