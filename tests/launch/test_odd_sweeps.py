"""Commands on sweeps with damaged files, names that mean something to rich, and numbers of processes used again."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch.cli import main
from launch.options import LocalOptions
from launch.records import write_job
from launch.run_states import run_states
from launch.sweep_dir import Sweep, SweepRun, read_sweep
from trainer.rundir.status import start_time, write_status

NOBODY = f"{socket.gethostname()}.999999999-1"
"""A process that is gone."""


def made(path: Path, runs: int = 1, job: str = NOBODY, **options: object) -> Sweep:
    """A sweep on this machine whose runs have started."""
    listed = [SweepRun(f"{i}_seed={i}", [f"seed={i}"], [f"{job}.{i}"]) for i in range(runs)]
    sweep = Sweep(path, path, LocalOptions(dir="x", snapshot=False, **options), listed)  # type: ignore[arg-type]
    sweep.jobs.mkdir(parents=True)
    for run in listed:
        sweep.directory(run).mkdir()
        write_job(sweep.directory(run), run.jobs[-1], 0)
    sweep.write()
    return sweep


ODD = [
    ("status.json", "null", "unknown"),
    ("status.json", "[]", "unknown"),
    ("status.json", '{"state": "finished"}', "unknown"),
    ("status.json", '{"format": 1, "state": "finished"}', "finished"),
    ("status.json", '{"format": 1, "state": "failed", "host": "h", "pid": "x", "time": 1}', "failed"),
    ("status.json", "{", "unknown"),
    ("status.json", "[" * 100_000, "unknown"),
    ("job.json", "null", "unknown"),
    ("job.json", "{}", "unknown"),
    ("job.json", '{"format": 1, "job": 3, "restarts": -1, "time": "now"}', "unknown"),
    ("job.json", "[" * 100_000, "vanished"),
]


@pytest.mark.parametrize(("name", "content", "state"), ODD)
def test_odd_files_of_one_run(
    name: str, content: str, state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = made(tmp_path, runs=2)
    for run in sweep.runs:
        write_status(sweep.directory(run), "running")
    write_status(sweep.directory(sweep.runs[1]), "finished", step=3)
    (sweep.directory(sweep.runs[0]) / name).write_text(content)
    assert main(["status", str(tmp_path)]) == 0
    assert main(["wait", str(tmp_path)]) == (0 if state == "finished" else 1)
    capsys.readouterr()
    assert main(["status", str(tmp_path), "--json"]) == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)] == [state, "finished"]


@pytest.mark.parametrize(
    "text", ["[/nothing]", "[bold]x[/bold]", "monitor.sinks=[console,jsonl]", "[", "\x1b[31m"]
)
def test_text_is_shown_as_it_is(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    sweep = made(tmp_path)
    write_status(sweep.directory(sweep.runs[0]), "failed", error=text, primary=text, metrics={text: 1.0})
    assert main(["status", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count(text.replace("\x1b", r"\x1b")) == 2
    assert "\x1b" not in out


def test_overrides_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["monitor.sinks=[console,jsonl]", "seed=0,1", f"launch.dir={tmp_path / 'x'}"]
    assert main(["launch=local", *words, "--dry-run"]) == 0
    assert "[console,jsonl]" in capsys.readouterr().out.replace("\n", "")


@contextmanager
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "100"]) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(start_time(os.getpid()) is None, reason="needs /proc")
def test_a_stranger_with_the_number_of_the_executor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with stranger() as process:
        started = start_time(process.pid)
        assert started is not None
        sweep = made(tmp_path, job=f"{socket.gethostname()}.{process.pid}-{started - 1}")
        (sweep.directory(sweep.runs[0]) / "job.json").unlink()
        assert main(["cancel", str(tmp_path)]) == 0
        assert "cancelled 0 of 1 runs" in capsys.readouterr().out
        assert main(["wait", str(tmp_path)]) == 1
        assert run_states(read_sweep(tmp_path))[0][0].state == "vanished"
        assert process.poll() is None

        sweep.runs[0].jobs = [f"{socket.gethostname()}.{process.pid}-{started}.0"]  # the executor itself
        sweep.write()
        assert run_states(read_sweep(tmp_path))[0][0].state == "queued"
        assert main(["cancel", str(tmp_path)]) == 0
        assert process.wait(10) == -signal.SIGTERM
