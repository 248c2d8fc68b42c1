"""A sink that fails is a warning of the others, and the run goes on."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.monitor.fake import monitors, progress, run_info
from trainer.cli.train import main
from trainer.monitor import MonitorOptions, Monitors, Sink
from trainer.rundir import status as module
from trainer.rundir.status import read_status

TINY = [
    "model.widths=[4]",
    "loop.max_steps=40",
    "loop.log_every=1",
    "loop.eval_every=10",
    "monitor.predictions=0",
]

LONG = ["loop.max_steps=400", "loop.eval_every=20"]  # there is much to print yet when the reader goes


class Full(Sink):
    """Its disk is full."""

    def __init__(self):
        pass

    def train(self, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def message(self, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def state_dict(self):
        raise RuntimeError("no\nstate")


class Heard(Sink):
    """Notes messages and steps."""

    def __init__(self):
        self.messages, self.steps = [], []

    def train(self, progress, metrics, clock):
        self.steps.append(progress.step)

    def message(self, text, level="info"):
        self.messages.append((level, text))

    def state_dict(self):
        return {"steps": len(self.steps)}


def test_one_warning_for_each_that_fails(tmp_path):
    heard = Heard()
    monitors = Monitors(run_info(tmp_path), MonitorOptions(sinks=[]), {"full": Full(), "heard": heard})
    for step in (1, 2, 3):
        monitors.train(progress(step), {}, {})
    assert monitors.state_dict() == {"heard": {"steps": 3}}
    assert heard.steps == [1, 2, 3]
    [(level, text)] = heard.messages
    assert level == "warning"
    assert text.startswith("monitor.sinks: full fails, and may lack records from here on: OSError: ")
    assert text.endswith("No space left on device")


def test_an_interrupt_is_no_failure(tmp_path):
    class Interrupted(Heard):
        def train(self, *_):
            raise KeyboardInterrupt

    monitors = Monitors(run_info(tmp_path), MonitorOptions(sinks=[]), {"interrupted": Interrupted()})
    with pytest.raises(KeyboardInterrupt):
        monitors.train(progress(1), {}, {})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("file", ["metrics.jsonl", "clock.jsonl"])
def test_a_full_disk_at_a_line_of_a_log(file, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / file).symlink_to("/dev/full")
    assert main([*TINY, "monitor.sinks=[console,jsonl]", f"hydra.run.dir={run}"]) == 0
    assert capsys.readouterr().out.count("warning: monitor.sinks: jsonl fails") == 1
    assert (read_status(run)["state"], read_status(run)["step"]) == ("finished", 40)


def test_nobody_reads_the_output_any_more(tmp_path):
    """As with ``| head -3``, a dead ``tee`` or a closed terminal."""
    run = tmp_path / "run"
    argv = [
        sys.executable,
        "-m",
        "trainer",
        *TINY,
        *LONG,
        "monitor.sinks=[console,jsonl,runlog]",
        f"hydra.run.dir={run}",
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
    assert process.returncode == 0, err
    assert err == ""
    assert (read_status(run)["state"], read_status(run)["step"]) == ("finished", 400)
    assert "monitor.sinks: console fails" in (run / "run.log").read_text()


def test_the_status_cannot_be_written(tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "write_status", refuse)
    assert main([*TINY, "monitor.sinks=[console,jsonl]", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    assert (
        "warning: status.json cannot be written: [Errno 28] No space left on device"
        in capsys.readouterr().out
    )


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file grows beyond that many bytes within the context: as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_record_that_does_not_fit_leaves_nothing(tmp_path, capsys):
    told = monitors(tmp_path, "console", "jsonl")
    with largest_file(300):
        for step in range(1, 5):
            told.train(progress(step), {"loss": 0.5}, {"rate": 1.0})
    told.train(progress(5), {"loss": 0.5}, {"rate": 1.0})
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 5]
    assert "jsonl fails" in capsys.readouterr().out


def test_event_files_that_do_not_fit(tmp_path, capfd):
    """Their writer has a thread, which would print a traceback."""
    told = monitors(tmp_path, "console", "tensorboard")
    with largest_file(10_000):
        for step in range(1, 200):
            told.train(progress(step), {"loss": 0.5}, {"rate": 1.0})
        assert told.state_dict() == {"console": {}}
        told.finish("finished", {})
    out, err = capfd.readouterr()
    assert out.count("tensorboard fails") == 1
    assert err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_is_broken_from_the_start(tmp_path, monkeypatch):
    run = tmp_path / "run"
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main([*TINY, "monitor.sinks=[console,jsonl,runlog]", f"hydra.run.dir={run}"]) == 0
    assert "monitor.sinks: console fails" in (run / "run.log").read_text()
    assert read_status(run)["state"] == "finished"


def test_a_file_that_cannot_be_opened_is_told_before_anything_is_trained(tmp_path, capsys):
    run = tmp_path / "run"
    (run / "run.log").mkdir(parents=True)
    assert main([*TINY, "monitor.sinks=[runlog]", f"hydra.run.dir={run}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: monitor.sinks: runlog cannot be opened: [Errno 21] Is a directory")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_run_without_standard_streams(tmp_path):
    """Files would get their numbers."""
    run = tmp_path / "run"
    argv = [sys.executable, "-m", "trainer", *TINY, "monitor.sinks=[console,jsonl]", f"hydra.run.dir={run}"]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *argv]
    assert subprocess.run(closed, check=False, timeout=100).returncode == 0
    assert read_status(run)["state"] == "finished"
    assert (run / "metrics.jsonl").read_text().startswith('{"kind": "train", "step": 1,')
    assert (run / ".lock").read_text() == ""
