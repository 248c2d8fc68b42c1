"""What is trackio's own: its folders, its axis of time, its network. The rest is in test_every_tracker.py."""

import shutil
import socket
from datetime import datetime

import pytest

from tests.monitor.fake import loss, monitors, play
from tests.trackers.stores import TrackioStore
from trainer.report.__main__ import main
from trainer.trackers.base import PROJECT, TrackedRun

pytest.importorskip("trackio", reason="trackio is tested with an older pillow, see .ci/run")

import trackio

from trainer.trackers.trackio import Trackio

LOSSES = [(step, loss(step)) for step in range(5, 61, 5)]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return TrackioStore(tmp_path)


def report(directory):
    told = monitors(directory, "jsonl", "trackio")
    told.finish("finished", play(told, 1, 60))


def test_the_axis_of_time_counts_training_seconds(store, run):
    report(run)
    rows = store.query("SELECT DISTINCT step, timestamp FROM metrics ORDER BY step")
    times = {step: datetime.fromisoformat(time) for step, time in rows}
    passed = [(step, (time - times[0]).total_seconds()) for step, time in times.items()]
    assert passed == [(step, step / 2) for step in range(0, 61, 5)]


def test_in_slurm_jobs_runs_stay_in_their_directories(run, monkeypatch):
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("TRACKIO_SQLITE_JOURNAL_MODE", "")  # as the tracker sets it, it is taken back
    monkeypatch.delenv("TRACKIO_SQLITE_JOURNAL_MODE")
    report(run)
    other = run.with_name("other")
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("trackio"))
    assert main(["push", str(other), str(run), "--to", "trackio"]) == 0
    for directory in (run, other):
        store = TrackioStore(directory)
        [found] = store.runs()
        assert found.options["run_directory"] == str(directory)
        assert found.points["train/loss"] == LOSSES
        assert store.query("PRAGMA journal_mode") == [("delete",)]


def test_a_push_while_the_run_trains_does_not_double_what_the_run_stores_later(store, run):
    tracked = TrackedRun(run, "digits", {})
    training = Trackio(tracked, None, True)
    training.log(5, 2.5, {"a": 1.0, "b": 2.0})
    pushing = Trackio(tracked, None, False)
    pushing.log(5, 2.5, {"a": 1.0, "b": 2.0})
    pushing.close("running")
    training.close("finished")
    [found] = store.runs()
    assert found.points == {"a": [(5, 1.0)], "b": [(5, 2.0)]}


def test_a_run_that_was_renamed_keeps_its_new_name(store, run, capsys):
    report(run)
    [opened] = trackio.Api().runs(PROJECT)
    opened.rename("best")
    assert main(["push", str(run), "--to", "trackio"]) == 0
    assert [each.name for each in trackio.Api().runs(PROJECT)] == ["best"]


def test_nothing_is_asked_of_the_network(store, run, monkeypatch):
    asked = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address))
    monkeypatch.setenv("HF_TOKEN", "hf_token")  # trackio.init would ask whose it is
    report(run)
    assert not asked
    assert len(store.runs()) == 1
