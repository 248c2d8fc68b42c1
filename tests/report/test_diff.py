"""What two runs differ in."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.report.fake import write_run
from trainer.report.__main__ import main


def compared(capsys: pytest.CaptureFixture[str], a: Path, b: Path) -> dict:
    assert main(["diff", str(a), str(b), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_where_two_runs_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write_run(tmp_path / "a", [0.5, 0.6, 0.7], seed=1, optimizer__lr=0.1)
    b = write_run(
        tmp_path / "b", [0.5, 0.6, 0.8], seed=2, optimizer__lr=0.1, hydra={"run": {"dir": "b"}}, name="b"
    )
    (b / "environment.json").write_text(
        json.dumps({"host": "here", "devices": [], "torch": "2.15", "git_commit": "1"})
    )
    found = compared(capsys, a, b)
    assert found["options"] == {"seed": [1, 2]}
    assert found["environment"] == {"torch": ["2.14", "2.15"], "git_commit": [None, "1"]}
    assert found["parting"] == {"step": 30, "kind": "evaluation", "metrics": {"test/accuracy": [0.7, 0.8]}}
    assert found["records"] == 5  # two of each step, but for the last; curvature does not count
    assert main(["diff", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert "metrics part at step 30 (evaluation)" in text
    assert "2.15" in text


def test_the_same_run_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (write_run(tmp_path / name, [0.5, float("nan")]) for name in "ab")
    assert compared(capsys, a, b) == {"options": {}, "environment": {}, "parting": None, "records": 4}
    assert main(["diff", str(a), str(b)]) == 0
    assert capsys.readouterr().out == (
        "No options differ.\nThe environments are the same.\nThe metrics are the same in all 4 records.\n"
    )


def test_one_that_is_longer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(tmp_path / "a", [0.5]), write_run(tmp_path / "b", [0.5, 0.6])
    assert compared(capsys, a, b)["parting"] == {"step": 20, "kind": "train", "metrics": {}}
    assert main(["diff", str(b), str(a)]) == 0
    assert "2 records are the same; one run alone has train at step 20." in capsys.readouterr().out


def test_mistakes(tmp_path: Path, refused: Callable[[int, str], None]) -> None:
    run = str(write_run(tmp_path / "run", [0.5]))
    refused(main(["diff", run, str(tmp_path / "none")]), "none is not a directory: give two run directories")
    refused(main(["diff", run, str(tmp_path)]), "has no config.yaml that can be read")
    refused(main(["diff", run]), "the following arguments are required: RUN")
