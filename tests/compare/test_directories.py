"""Every run of a comparison has a directory of its own, and nobody is left out in silence. No run is trained."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from trainer.compare import __main__ as command
from trainer.compare.planning import PlannedRun
from trainer.report.read_runs import RecordedRun, read_run
from trainer.rundir.status import read_status, write_status

TINY = ["model.widths=[4]", "loop.max_steps=1", "monitor.sinks=[jsonl]"]


class FakeRunner:
    """Ends every run at once: with a loss equal to its learning rate, or as failed where that is above 1."""

    trained: ClassVar[list[Path]] = []

    def __init__(self, folder: Path, *_: Any) -> None:
        self.log = folder / "output.log"

    def __enter__(self) -> "FakeRunner":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def check(self, configs: Sequence[Any]) -> None:
        pass

    def run(self, planned: Sequence[PlannedRun], what: str) -> list[RecordedRun]:
        for each in planned:
            self.trained.append(each.path)
            lr = read_run(each.path).config["optimizer.lr"]
            split = "val" if what == "tune" else "test"
            if lr > 1:
                write_status(each.path, "failed", step=1, error="not finite")
                continue
            record = {"kind": "evaluation", "step": 1, "epoch": 0.1, f"{split}/loss": lr}
            (each.path / "metrics.jsonl").write_text(json.dumps(record))
            write_status(each.path, "finished", step=1, primary=f"{split}/loss", metrics={})
        return [read_run(each.path) for each in planned]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(command, "Runner", FakeRunner)
    monkeypatch.setattr(FakeRunner, "trained", [])
    return FakeRunner.trained


@pytest.mark.parametrize("names", [("a" * 110, "b" * 110), ("a/b", "a-b"), ("ä" * 110, "ü" * 110)])
def test_long_and_alike_labels(names: tuple[str, str], tmp_path: Path, trained: list[Path]) -> None:
    """Labels that are cut, or that differ in what a name of a file cannot hold."""
    paths = ",".join(f"'{tmp_path}/{name}.txt'" for name in names)
    texts = [f"data.path={paths}", "data=text", "model=gpt"]
    argv = [*texts, "loop.max_steps=1", "optimizer=sgd", "seed=0,1", "tune.lr=[0.1,0.2]"]
    assert command.main([*argv, f"compare.dir={tmp_path / 'c'}"]) == 0
    assert len(trained) == len(set(trained)) == 2 * 2 + 2 * 2
    assert {read_run(path).config["seed"] for path in trained} == {0, 1, 2}


def test_the_directory_of_another_run_is_refused(
    tmp_path: Path, trained: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*TINY, "optimizer=sgd", "seed=0,1", f"compare.dir={tmp_path}"]
    assert command.main(argv) == 0
    assert command.main(argv) == 0, "the same"
    trained.clear()
    first, second = sorted((tmp_path / "runs").iterdir())
    (first / "config.yaml").write_text((second / "config.yaml").read_text())
    capsys.readouterr()
    assert command.main(argv) == 2
    assert capsys.readouterr().err == (
        f"error: {first} holds another run than that of this comparison: move it away\n"
    )
    assert trained == []
    (first / "config.yaml").write_text("[")
    assert command.main(argv) == 2
    assert "holds another run" in capsys.readouterr().err


def test_a_contender_whose_trials_all_failed(
    tmp_path: Path, trained: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tunes = ["tune.lr=[0.1,0.2]", "tune.lr.sgd=[10,20]"]
    argv = [*TINY, "optimizer=adamw,sgd", *tunes, "compare.baseline=sgd", f"compare.dir={tmp_path}"]
    assert command.main(argv) == 1
    said, problem = capsys.readouterr(), "sgd is not compared, since all of its trials failed."
    assert problem in said.out
    assert said.err == f"error: {problem}\n"
    assert problem in (tmp_path / "report" / "report.md").read_text()
    status = read_status(tmp_path)
    assert (status["state"], status["error"]) == ("failed", problem)
    assert command.main([*argv, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["untuned"] == ["sgd"]


def test_nobody_is_left(tmp_path: Path, trained: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*TINY, "optimizer=adamw,sgd", "tune.lr=[10,20]", f"compare.dir={tmp_path}"]
    assert command.main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "failed" in said


def test_two_in_the_same_second(
    tmp_path: Path, trained: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    for optimizer in ("sgd", "adamw"):
        assert command.main([*TINY, f"optimizer={optimizer}"]) == 0, capsys.readouterr().err
    made = {
        path.name: read_run(next(path.glob("runs/*"))) for path in Path("outputs", "comparisons").iterdir()
    }
    assert {name: run.config["optimizer.name"] for name, run in made.items()} == {
        "now": "sgd",
        "now_1": "adamw",
    }


@pytest.mark.slow
def test_two_in_one_folder(tmp_path: Path, trained: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """The first is stopped as soon as it has written down its state, and so has locked its folder."""
    folder = tmp_path / "c"
    argv = [*TINY, "optimizer=sgd", f"compare.dir={folder}"]
    first = subprocess.Popen([sys.executable, "-m", "trainer.compare", *argv], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 100
        while not (folder / "status.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(first.pid, signal.SIGSTOP)
        assert command.main(argv) == 2
        assert capsys.readouterr().err == (
            f"error: another process trains in {folder}: wait for it or choose another compare.dir\n"
        )
        assert trained == []
    finally:
        first.kill()
        first.wait()
