"""A run that is killed, stopped or damaged goes on as if nothing had happened."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.training.kill_and_resume import RUNS, compare, finish, start, trial
from trainer.checkpoint import storage
from trainer.checkpoint.manifest import MANIFEST
from trainer.cli.train import main
from trainer.data import Batch, TrainLoader
from trainer.rundir.status import INTERRUPTED

pytestmark = pytest.mark.slow

STEPS = 44
TINY = "model.widths=[4,8] loop.max_epochs=2 loop.ema=0.9 checkpoint.every_steps=5 data.batch_size=64"


@pytest.mark.parametrize("name", RUNS)
def test_killed_at_random_moments(name: str, tmp_path: Path) -> None:
    assert trial(RUNS[name], tmp_path, kills=4, seed=1) == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed, to be read only."""
    directory = tmp_path_factory.mktemp("finished")
    finish(TINY, directory)
    return directory


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_with_a_checkpoint_and_75(
    number: signal.Signals, finished: Path, tmp_path: Path
) -> None:
    disturbed = tmp_path / "disturbed"
    process = start(TINY, disturbed)
    _wait_for_step(disturbed)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 75
    status = json.loads((disturbed / "status.json").read_text())
    assert status["state"] == "preempted"
    assert number.name in status["error"]
    newest = storage.list_checkpoints(disturbed / "checkpoints")[0]
    assert newest.name == f"step_{status['step']:08d}"
    finish(TINY, disturbed)
    assert compare(disturbed, finished) == []


def test_a_second_interrupt_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both come within one step, so that the first cannot have been acted upon."""
    next_batch, begun = TrainLoader.next_batch, []

    def interrupt_twice(loader: TrainLoader) -> list[Batch]:
        begun.append(loader.batch)
        for _ in range(2 if len(begun) == 7 else 0):
            signal.raise_signal(signal.SIGINT)
        return next_batch(loader)

    monkeypatch.setattr(TrainLoader, "next_batch", interrupt_twice)
    assert main([*TINY.split(), f"hydra.run.dir={tmp_path / 'run'}"]) == INTERRUPTED
    assert len(begun) == 7
    assert [c.name for c in storage.list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step_00000005"]


def _wait_for_step(directory: Path) -> None:
    deadline = time.monotonic() + 60
    while not (directory / "metrics.jsonl").exists() or not (directory / "metrics.jsonl").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("damage", ["truncated", "half deleted", "no manifest"])
def test_a_damaged_checkpoint_is_skipped(
    damage: str, run: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest, before, *_ = storage.list_checkpoints(run / "checkpoints")
    if damage == "truncated":
        data = next(newest.glob("*.distcp"))
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif damage == "half deleted":
        next(newest.glob("*.distcp")).unlink()
    else:
        (newest / MANIFEST).unlink()
    (run / "status.json").unlink()
    assert main([*TINY.split(), f"hydra.run.dir={run}"]) == 0
    out = capsys.readouterr().out.replace("\n", "")
    assert f"{newest.name} is damaged and is skipped" in out
    assert f"going on from {before}" in out
    assert compare(run, finished) == []


def test_a_finished_run_says_so_and_does_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    assert main([*TINY.split(), f"hydra.run.dir={run}"]) == 0
    assert f"finished already at step {STEPS}" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in run.rglob("*")}


def test_a_frozen_config_is_the_same_run(finished: Path, tmp_path: Path) -> None:
    again = ["--config-path", str(finished), "--config-name", "config"]
    assert main([*again, f"hydra.run.dir={tmp_path / 'second'}"]) == 0
    assert compare(tmp_path / "second", finished) == []


def test_a_group_is_chosen_anew_on_top_of_a_frozen_config(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["--config-path", str(finished), "--config-name", "config"]
    again += [f"hydra.run.dir={tmp_path / 'second'}", "optimizer=sgd", "precision=bf16", "parallel=none"]
    assert main(again) == 0
    assert "with sgd, cpu, bf16" in capsys.readouterr().out
    assert main([*again, "schedule=cosin"]) == 2
    assert "did you mean cosine" in capsys.readouterr().err


def test_resuming_from_another_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = f"{TINY} loop.max_epochs=1 checkpoint.resume={finished} hydra.run.dir={tmp_path / 'second'}"
    assert main(second.split()) == 0
    status = json.loads((tmp_path / "second" / "status.json").read_text())
    assert status["step"] == STEPS // 2  # its own budget, from its own beginning
    assert (
        status["metrics"]["test/loss"]
        < json.loads((finished / "status.json").read_text())["metrics"]["test/loss"]
    )
    capsys.readouterr()
    wrong = f"model.widths=[8,8] checkpoint.resume={finished} hydra.run.dir={tmp_path / 'third'}"
    assert main(wrong.split()) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert (
        "of another model: features.0.weight has the shape (4, 1, 3, 3), the model's has (8, 1, 3, 3)" in err
    )
    assert not (tmp_path / "third").exists()


def test_a_run_that_started_from_another_goes_on_from_its_own_checkpoints(
    finished: Path, tmp_path: Path
) -> None:
    longer = f"{TINY} checkpoint.resume={finished}".replace("max_epochs=2", "max_epochs=8")
    process = start(longer, tmp_path / "second")
    _wait_for_step(tmp_path / "second")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 75
    stopped = json.loads((tmp_path / "second" / "status.json").read_text())["step"]
    finish(longer, tmp_path / "second")
    own = tmp_path / "second" / "checkpoints" / f"step_{stopped:08d}"
    assert f"going on from {own}" in (tmp_path / "second" / "run.log").read_text()


def test_a_run_directory_is_not_overwritten(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY.split(), f"hydra.run.dir={finished}", "checkpoint.resume=none"]) == 2
    assert "would overwrite" in capsys.readouterr().err
