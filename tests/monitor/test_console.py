import os
import pty
import re
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from tests.monitor.fake import monitors, play, progress

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\].*?(?:\x07|\x1b\\)")


@contextmanager
def terminal(monkeypatch, **environment):
    """Makes stdout a pseudo-terminal of 120 columns; yields a list that holds all it was sent, in the end."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, text in {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40", **environment}.items():
        monkeypatch.setenv(name, text)
    ours, theirs = pty.openpty()
    arrived, text = [], []

    def listen():
        while True:
            try:
                arrived.append(os.read(ours, 4096))
            except OSError:  # the other side hung up
                return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    with open(theirs, "w", encoding="utf-8") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        yield text
    listener.join(10)
    os.close(ours)
    text.append(b"".join(arrived).decode())


def test_a_terminal_shows_a_bar_below_a_growing_table(tmp_path, monkeypatch):
    (tmp_path / "events.out.tfevents.1").touch()
    with terminal(monkeypatch) as text:
        told = monitors(tmp_path, "console")
        metrics = play(told, 1, 60)
        told.message("step 61 is skipped", "warning")
        told.sinks["console"]._live.refresh()
        told.finish("finished", metrics)
    [seen] = text
    lines = [line.rstrip() for line in CONTROL.sub("", seen).splitlines()]

    assert any("digits  cnn (93,322 parameters) on digits" in line for line in lines)
    heads = next(line for line in lines if "train/loss" in line)
    assert heads.split()[:5] == ["epoch", "step", "train/loss", "test/accuracy", "test/loss"]
    table = [line for line in lines if re.search(r"\d%  +0\.\d{4}$|\d%  +1\.\d{4}$", line)]
    assert table[0].split() == ["★", "1.00", "10", "1.6950", "18.36%", "1.7950"]
    assert [line.split()[-4] for line in table] == ["10", "20", "30", "40", "50", "60"]
    assert [line.split()[-4] for line in table if line.startswith("★")] == ["10", "20", "30", "50"]
    assert table[-1].index("0.5145") + 6 == heads.index("train/loss") + len("train/loss")

    assert any(re.search(r"━+ +100%  step 60/60  ETA 0:00", line) for line in lines)
    names = next(line for line in lines if "samples/s" in line)
    assert names.split() == ["epoch", "loss", "accuracy", "lr", "samples/s", "memory"]
    assert any(line.split() == ["6.00", "0.5145", "59.78%", "0.001", "1,234", "412", "MiB"] for line in lines)
    assert "warning: step 61 is skipped" in lines
    assert lines[-3:] == [
        "finished: test/accuracy 59.78%, best 74.92% at step 50, 60 steps in 30.0 s of training",
        f"  run directory: {tmp_path}",
        f"  tensorboard --logdir {tmp_path}",
    ]
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l"), "the cursor is back"


def test_a_terminal_without_cursor_movement_gets_plain_lines(tmp_path, monkeypatch):
    with terminal(monkeypatch, TERM="dumb") as text:
        told = monitors(tmp_path, "console")
        told.finish("failed", play(told, 1, 10))
    assert "eval   step=10" in text[0]
    assert "\x1b" not in text[0]


@pytest.fixture
def clock(monkeypatch):
    """The console's clock, which stands still unless it is moved."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("trainer.monitor.console.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def parse(line):
    kind, *cells = line.split()
    return {"kind": kind, **dict(cell.split("=") for cell in cells)}


def test_plain_lines(tmp_path, capsys, clock):
    told = monitors(tmp_path, "console")
    for step in range(1, 51):
        clock.now += 0.25
        play(told, step, step)
    told.message("careful", "warning")
    told.finish("finished", {"test/accuracy": 0.5, "test/loss": 1.0})
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.replace("\n", "").isprintable()

    lines = out.splitlines()
    assert lines[0] == "digits: cnn (93,322 parameters) on digits (1,437 samples), cpu, fp32"
    assert lines[1] == f"run directory: {tmp_path}"
    records = [parse(line) for line in lines if line.startswith(("train", "eval"))]
    assert [r["step"] for r in records if r["kind"] == "eval"] == ["10", "20", "30", "40", "50"]
    assert records[0] == {
        "kind": "train",
        "step": "5",
        "epoch": "0.50",
        "seconds": "2.5",
        "train/loss": "2.2912",
        "train/accuracy": "10.11%",
        "lr": "0.001",
        "samples_per_second": "1234",
        "data_wait": "12.50%",
        "flops_per_second": "1.5e+12",
        "memory_mib": "412",
        "eta": "0:14",  # 55 of 60 steps remain at 4 steps a second
    }
    assert records[2] == {
        "kind": "eval",
        "step": "10",
        "epoch": "1.00",
        "seconds": "5.0",
        "test/loss": "1.7950",
        "test/accuracy": "18.36%",
        "best": "yes",
    }
    trains = [line for line in lines if line.startswith("train")]
    assert len({tuple(m.start() for m in re.finditer(r"\S+=", line)) for line in trains}) == 1, "aligned"
    assert lines[-3:] == [
        "warning: careful",
        "finished: test/accuracy 50.00%, best 74.92% at step 50, 50 steps in 25.0 s of training",
        f"run directory: {tmp_path}",
    ]


def test_plain_lines_come_once_a_second(tmp_path, capsys, clock):
    told = monitors(tmp_path, "console")
    for step in range(1, 101):
        clock.now += 0.125
        told.train(progress(step), {"train/loss": 1.0}, {})
        told.evaluation(progress(step), {"test/loss": 1.0}, {})
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("train") for line in lines) == 13  # in 12.5 s
    assert sum(line.startswith("eval") for line in lines) == 100


def test_a_resumed_run_knows_the_best_before(tmp_path, capsys):
    first = monitors(tmp_path, "console")
    play(first, 1, 50)
    second = monitors(tmp_path, "console", resumed_step=50)
    second.load_state_dict(first.state_dict())
    capsys.readouterr()
    second.finish("finished", play(second, 51, 60))
    out = capsys.readouterr().out
    assert parse(out.splitlines()[-3])["best"] == "no"
    assert "best 74.92% at step 50" in out


def test_a_run_that_fails_at_once(tmp_path, capsys):
    monitors(tmp_path, "console").finish("failed", {})
    assert "failed: 0 steps in 0.0 s of training" in capsys.readouterr().out
