"""What all trackers share, with one that only notes."""

import pytest

from tests.monitor.fake import play, run_info
from trainer.cli.train import main as train
from trainer.monitor import MonitorOptions, Monitors
from trainer.monitor import trackers as module
from trainer.monitor.trackers import TrackerSink
from trainer.trackers import base
from trainer.trackers.base import TRACKERS, TrackedRun


class Noted:
    """A tracker that notes what it is given, and refuses from a step on."""

    id = "run-7"

    def __init__(self, refused_from=None):
        self.refused_from = refused_from
        self.opened, self.steps, self.closed = [], [], None

    def open(self, name, run, *, id, anew):
        self.opened.append((name, id, anew))
        return self

    def log(self, step, seconds, values):
        self.steps.append(step)
        if self.refused_from is not None and step >= self.refused_from:
            raise ConnectionError("no route\nto host")

    def flush(self):
        pass

    def close(self, state):
        self.closed = state


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """Opens monitors with a sink to a tracker."""

    def open_sink(tracker, **changes):
        monkeypatch.setattr(module, "open_tracker", tracker.open)
        run = run_info(tmp_path, **changes)
        return Monitors(run, MonitorOptions(sinks=["console"]), {"noted": TrackerSink(run, "noted")})

    return open_sink


def test_the_trackers_own_name_of_the_run_is_in_the_checkpoint(opened):
    first, second = Noted(), Noted()
    told = opened(first)
    play(told, 1, 10)
    state = told.state_dict()
    assert state["noted"] == {"id": "run-7"}
    told = opened(second, resumed_step=10)
    told.load_state_dict(state)
    told.finish("finished", play(told, 11, 20))
    assert (first.opened, second.opened) == ([("noted", None, True)], [("noted", "run-7", False)])
    assert (first.closed, second.closed) == (None, "finished")


def test_a_tracker_that_fails_is_one_warning_and_then_left_alone(opened, capsys):
    tracker = Noted(refused_from=15)
    told = opened(tracker)
    told.finish("finished", play(told, 1, 60))
    assert capsys.readouterr().out.count("warning: monitor.sinks: noted fails") == 1
    assert tracker.steps == [5, 10, 10, 15]
    assert tracker.closed is None
    assert told.state_dict()["noted"] == {"id": "run-7"}


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_told_with_its_extra(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(base, "find_spec", lambda package: None)
    assert train([f"monitor.sinks=[console,{name}]", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert said == f"error: monitor.sinks: {name} needs the package {name}: pip install '.[{name}]'\n"
    assert not list(tmp_path.iterdir())


def test_a_directory_has_one_identity(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    paths = (tmp_path, tmp_path / "link", tmp_path / ".." / tmp_path.name)
    assert len({TrackedRun(path, "name", {}).identity for path in paths}) == 1
    assert TrackedRun(tmp_path / "other", "name", {}).identity != TrackedRun(tmp_path, "name", {}).identity
