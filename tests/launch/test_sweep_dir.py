"""sweep.json and job.json: read as they were written, refused in one line if they cannot be; the sweep's directory."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from launch import slurm_executor
from launch.cli import main
from launch.options import LocalOptions, SlurmOptions
from launch.records import read_job, write_job
from launch.sweep_dir import Sweep, SweepRun, new_directory, read_sweep
from trainer.errors import UserError
from trainer.options import to_dict
from trainer.rundir.status import INTERRUPTED

RUNS = [SweepRun("0_seed=0", ["seed=0"], ["h.7.0", "h.9-5.0"], "h.9-5.0"), SweepRun("1_seed=1", ["seed=1"])]
JOBS = [SweepRun("0_seed=0", ["seed=0"], ["7_0", "9"], "9"), SweepRun("1_seed=1", ["seed=1"])]


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        (LocalOptions(dir="x"), RUNS),
        (SlurmOptions(dir="x", nodes=2, sbatch={"nice": 5}, setup=["a", "b"]), JOBS),
    ],
)
def test_what_is_written_is_read(
    options: LocalOptions | SlurmOptions, runs: list[SweepRun], tmp_path: Path
) -> None:
    sweep = Sweep(tmp_path, Path("/home"), options, runs, comparison=True)
    sweep.write()
    assert read_sweep(tmp_path) == sweep
    assert json.loads((tmp_path / "sweep.json").read_text())["format"] == 1


def edited(record: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parents, last = path.split(".")
    place: Any = record
    for parent in parents:
        place = place[int(parent) if parent.isdigit() else parent]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return record


@pytest.mark.parametrize(
    ("path", "value", "hint"),
    [
        ("format", 2, "format"),
        ("format", None, "format"),
        ("runs.1.colour", "red", "colour"),
        ("runs.1.jobs", "7", "jobs"),
        ("runs", None, "runs"),
        ("cwd", None, "cwd"),
        ("owner", "me", "owner"),
        ("launch.nodes", 2, "launch.nodes"),
        ("launch.name", "cloud", "launch.name"),
        ("runs.0.jobs", ["9"], "id of a job"),
        ("runs.0.jobs", ["here.99999999999-1.0"], "id of a job"),
        ("runs.0.cancelled", "x", "id of a job"),
        ("runs.0.name", "../x", "name of a run"),
        ("runs.0.name", "..", "name of a run"),
    ],
)
def test_another_record_is_refused_in_one_line(
    path: str, value: Any, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Sweep(tmp_path, tmp_path, LocalOptions(dir="x"), RUNS).write()
    file = tmp_path / "sweep.json"
    record = json.loads(file.read_text())
    del record["checksum"]
    file.write_text(json.dumps(edited(record, path, value)))
    assert main(["status", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"error: {file} ")
    assert hint in err.removeprefix(f"error: {file}")


def test_a_changed_record_is_refused(tmp_path: Path) -> None:
    Sweep(tmp_path, tmp_path, LocalOptions(dir="x"), RUNS).write()
    file = tmp_path / "sweep.json"
    file.write_text(file.read_text().replace('"comparison": false', '"comparison": true'))
    with pytest.raises(UserError, match="is damaged, its checksum is that of other content"):
        read_sweep(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "[" * 100_000])
def test_a_damaged_record(content: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UserError, match=r"sweep\.json is damaged: "):
        read_sweep(tmp_path)


def test_the_job_of_a_run(tmp_path: Path) -> None:
    assert read_job(tmp_path) is None
    write_job(tmp_path, "7_1", 2)
    job = read_job(tmp_path)
    assert job is not None
    assert (job.format, job.job, job.restarts) == (1, "7_1", 2)
    for changed, message in (
        ({"format": 2}, "format 2"),
        ({"time": "now"}, "damaged: time"),
        ({"job": 7}, "job=7"),
    ):
        (tmp_path / "job.json").write_text(json.dumps({**to_dict(job), **changed}))
        with pytest.raises(UserError, match=message):
            read_job(tmp_path)


def test_a_new_directory_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "sweep"
    with new_directory(path):
        (path / "file").touch()
    assert path.stat().st_mode & 0o777 == 0o700
    with pytest.raises(UserError, match="exists already"), new_directory(path):
        pass
    assert (path / "file").exists()


def test_the_loser_of_a_race_leaves_the_winners_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loser has looked before the winner made it."""
    path = tmp_path / "sweep"
    path.mkdir()
    (path / "sweep.json").touch()
    monkeypatch.setattr(Path, "exists", lambda _: False)
    with pytest.raises(UserError, match="File exists"), new_directory(path):
        pass
    assert [file.name for file in path.iterdir()] == ["sweep.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_does_not_take_the_directory_from_queued_jobs(
    number: signal.Signals,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It comes after sbatch has answered, and before anybody knows."""

    def submit(sweep: Sweep, runs: list[SweepRun]) -> None:
        os.kill(os.getpid(), number)
        runs[0].jobs.append("7")
        sweep.write()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm_executor, "submit", submit)
    path = tmp_path / "sweep"
    before = signal.signal(number, interrupt)
    try:
        assert main(["seed=1", "launch.snapshot=false", f"launch.dir={path}"]) == INTERRUPTED
    finally:
        signal.signal(number, before)
    assert f"1 run in {path}; see python -m launch status {path}\n" in capsys.readouterr().out
    assert read_sweep(path).runs[0].jobs == ["7"]


def fill_and_fail(path: Path, error: BaseException) -> None:
    with new_directory(path):
        (path / "file").touch()
        raise error


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(28, "No space left on device"), UserError, "No space left on device"),
        (KeyboardInterrupt("twice"), KeyboardInterrupt, "twice"),
        (UserError("Slurm refused the jobs"), UserError, "Slurm refused the jobs"),
    ],
)
def test_after_an_error_nothing_that_was_made_is_left(
    error: BaseException, raised: type[BaseException], message: str, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(raised, match=message):
        fill_and_fail(tmp_path / "a" / "b" / "sweep", error)
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_parents_are_removed_if_the_directory_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="File name too long"), new_directory(tmp_path / "a" / ("x" * 300)):
        pass
    assert list(tmp_path.iterdir()) == []
