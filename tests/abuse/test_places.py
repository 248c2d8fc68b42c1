"""Run directories are moved, copied, named badly, shared, read-only."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.abuse.runs import TINY, checkpoints, content, go, refusal, stopped
from tests.training.kill_and_resume import compare
from trainer.checkpoint import storage
from trainer.cli.train import main
from trainer.config.compose import file_name
from trainer.export.__main__ import main as export
from trainer.rundir import directory as module
from trainer.rundir.directory import RunDirectory


def lose_newest(run: Path) -> Path:
    shutil.rmtree(checkpoints(run)[0])
    return stopped(run)


@pytest.mark.parametrize("name", ["moved", "a b,c=ä", "new\nline", "${oc.env:HOME}", "\udcff"])
def test_a_run_is_where_its_directory_is(name: str, run: Path, finished: Path, tmp_path: Path) -> None:
    moved = lose_newest(run).rename(tmp_path / name)
    assert main(["--config-path", str(moved), "--config-name", "config"]) == 0
    assert not run.exists()
    assert compare(moved, finished) == []


def test_a_copy_is_a_run_of_its_own(run: Path, finished: Path, tmp_path: Path) -> None:
    """One that followed the links, as ``cp -rL`` and file systems without links do, has a folder for the link."""
    copied = Path(shutil.copytree(lose_newest(run), tmp_path / "copy", symlinks=False))
    before = content(run)
    assert storage.best(copied / "checkpoints") == storage.best(run / "checkpoints")
    assert main([f"--config-path={copied}"]) == 0
    assert content(run) == before
    assert compare(copied, finished) == []
    assert (copied / "checkpoints" / "best").is_symlink()
    assert export([str(copied), "--best"]) == 0


def test_there_are_no_links(run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    (run / "checkpoints" / "best").unlink()
    assert go(lose_newest(run)) == 0
    assert (run / "checkpoints" / "best").read_text() == storage.best(finished / "checkpoints")
    assert storage.best(run / "checkpoints") == storage.best(finished / "checkpoints")
    assert export([str(run), "--best"]) == 0


@pytest.mark.parametrize("sign", ["", "++"])
def test_the_directory_is_named_in_any_of_hydras_ways(
    sign: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main([*TINY, f"{sign}hydra.run.dir={run}"]) == 0
    assert f"finished already at step 6: {run}" in capsys.readouterr().out
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_a_config_that_looks_like_something_else_goes_on(tmp_path: Path) -> None:
    """A name that is a number, and text with what looks like an interpolation."""
    line = [*TINY, 'name="1e3"', r"monitor.sample_prompt='a \${b} c'", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(line) == 0
    assert main(["--config-path", str(tmp_path / "run"), "loop.max_steps=7"]) == 0
    assert json.loads((tmp_path / "run" / "status.json").read_text())["step"] == 7


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/b", "''"])
def test_names_that_lead_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, f"name={name}"]) == 2
    assert "name=" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_runs_of_a_sweep_in_one_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = [f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=same"]
    assert main(["--multirun", *TINY, "loop.max_steps=1", "seed=0,1", *place]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"error: {tmp_path / 'same'} is the run of another config: seed=0 there, 1 here: "
        f"choose another hydra.run.dir\n"
    )


def test_long_overrides_are_not_cut_into_one_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = [f"data.{option}" for option in ("normalize=true", "crop_padding=1", "flip=false", "cutout=0")]
    shared += ["loop.label_smoothing=0.000000001", "schedule.warmup=0.000000000001", "loop.max_steps=1"]
    for rest in (["optimizer.lr=0.1", "seed=0"], ["optimizer.lr=0.2", "seed=1"]):
        assert main(["--multirun", *TINY[:-3], *shared, *rest, f"hydra.sweep.dir={tmp_path}"]) == 0
    assert len({path.name for path in tmp_path.iterdir() if path.is_dir()}) == 2
    assert "finished already" not in capsys.readouterr().out
    assert len({file_name("x" * 200 + end) for end in "abc"}) == 3
    assert all(len(file_name(letter * 300).encode()) <= 120 for letter in "xä€")


def test_two_runs_start_in_the_same_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes between making the directory and locking it."""
    first = RunDirectory(tmp_path / "name" / "run", unique=True)
    make = module.make_directories

    def meanwhile(*args: Any, **options: Any) -> list[Path]:
        monkeypatch.setattr(module, "make_directories", make)
        first.remove_if_unused()
        first.release()
        return make(*args, **options)

    monkeypatch.setattr(module, "make_directories", meanwhile)
    second = RunDirectory(tmp_path / "name" / "run", unique=True)
    third = RunDirectory(tmp_path / "name" / "run", unique=True)
    assert {second.path.name, third.path.name} == {"run", "run_1"}


def test_a_run_in_the_same_second_takes_its_directory_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its parent, after this one has found that its name is taken."""
    first = RunDirectory(tmp_path / "name" / "run", unique=True)
    mkdir = Path.mkdir

    def too_late(path: Path, *args: Any, **options: Any) -> None:
        try:
            mkdir(path, *args, **options)
        except FileExistsError:
            if path.name == "run":
                monkeypatch.setattr(Path, "mkdir", mkdir)
                first.remove_if_unused()
                first.release()
            raise

    monkeypatch.setattr(Path, "mkdir", too_late)
    second = RunDirectory(tmp_path / "name" / "run", unique=True)
    assert second.path == tmp_path / "name" / "run"


@pytest.mark.parametrize("file", [".lock", "config.yaml", "metrics.jsonl"])
def test_a_directory_that_cannot_be_written(
    file: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a disk that is mounted read-only: root's writing is stopped by nothing else."""
    stopped(run)
    part = run / f".{file}.part"
    if file == "config.yaml":
        part.mkdir()  # what is there cannot be replaced by a file
        (part / "x").touch()
    else:
        (run / file).unlink()
        (run / file).mkdir()
    monkeypatch.setattr("trainer.rundir.files._remove", lambda _: None)
    capsys.readouterr()
    assert go(run) == 2
    err = capsys.readouterr().err
    what = "monitor.sinks: jsonl" if file == "metrics.jsonl" else f"the run directory {run}"
    assert err.startswith(f"error: {what} cannot be ")
    assert err.count("\n") == 1


def test_exports_that_cannot_be_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    for out, said in (
        (tmp_path / "folder", "is a folder: give the name of a file"),
        (tmp_path / "none" / "x", "does not exist"),
        (Path("/proc/x"), "cannot be written"),
    ):
        capsys.readouterr()
        assert said in refusal(capsys, export([str(run), "--out", str(out)]))


@pytest.mark.slow
def test_a_locale_without_letters(tmp_path: Path) -> None:
    """Paths and messages with other letters are escaped, not a reason to end."""
    place = tmp_path / "ö"
    place.mkdir()
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    line = [sys.executable, "-m", "trainer", *TINY, "monitor.sinks=[console,runlog]", "loop.max_steps=1"]
    done = subprocess.run([*line, "hydra.run.dir=run"], cwd=place, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"run directory: " in done.stdout
