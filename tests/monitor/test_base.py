import dataclasses
import inspect
from pathlib import Path

import pytest
import yaml

from tests.monitor.fake import monitors, play, progress, run_info
from trainer.errors import ConfigError
from trainer.monitor import SINKS, MonitorOptions, Monitors, Sink
from trainer.options import check_options, options_of

METHODS = [name for name, _ in inspect.getmembers(Sink, inspect.isfunction) if not name.startswith("_")]


REPORTS = sorted(set(METHODS) - {"attach", "state_dict", "load_state_dict"})


class Recorder(Sink):
    """Notes what is reported to it."""

    def __init__(self, noted, name="recorder"):
        self.noted, self.name = noted, name

    def state_dict(self):
        return {"noted": len(self.noted)}

    def load_state_dict(self, state):
        self.noted.append(("load_state_dict", state))


for name in REPORTS:
    setattr(Recorder, name, lambda self, *args, name=name: self.noted.append((self.name, name, *args)))


@pytest.fixture
def calls(monkeypatch):
    """A sink named "recorder" that notes what is reported to it."""
    monkeypatch.setattr(SINKS, "_entries", dict(SINKS._entries))
    noted = []
    SINKS.register("recorder")(lambda run: Recorder(noted))
    return noted


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_reaches_every_sink_with_its_arguments(name, tmp_path, calls):
    extra = {"extra": Recorder(calls, "extra")}
    reported = Monitors(run_info(tmp_path), MonitorOptions(sinks=["recorder"]), extra)
    arguments = [object() for _ in list(inspect.signature(getattr(Sink, name)).parameters)[1:]]
    getattr(reported, name)(*arguments)
    assert calls == [("extra", name, *arguments), ("recorder", name, *arguments)]


def test_a_default_is_left_to_the_sink(tmp_path, capsys):
    monitors(tmp_path, "console").message("hello", level="warning")
    assert "warning: hello" in capsys.readouterr().out


def test_the_state_is_that_of_each_sink_by_name(tmp_path, calls):
    reported = monitors(tmp_path, "recorder", "jsonl")
    assert reported.state_dict() == {
        "recorder": {"noted": 0},
        "jsonl": {"metrics": 0, "clock": 0, "metrics_checksum": 0},
    }
    reported.load_state_dict({"recorder": {"noted": 7}})
    assert calls == [("load_state_dict", {"noted": 7})]


def test_a_sink_can_report_to_the_others(tmp_path, capsys):
    class Greeter(Sink):
        def __init__(self):
            pass

        def attach(self, monitors):
            monitors.message("hello")

    Monitors(run_info(tmp_path), MonitorOptions(sinks=["console"]), {"greeter": Greeter()})
    assert capsys.readouterr().out.splitlines()[0] == "hello"


def test_a_sink_that_the_checkpoint_does_not_know_is_left_alone(tmp_path, calls):
    monitors(tmp_path, "recorder").load_state_dict({"jsonl": {"metrics": 0, "clock": 0}})
    assert calls == []


def test_no_sinks_no_files(tmp_path):
    told = monitors(tmp_path)
    told.finish("finished", play(told, 1, 20))
    assert told.state_dict() == {}
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_sink_is_named_with_its_neighbours():
    with pytest.raises(ConfigError, match=r"unknown sink 'tensorbord'; did you mean tensorboard.*jsonl"):
        MonitorOptions(sinks=["tensorbord"])


def test_the_config_group_lists_every_option_with_its_default():
    path = Path(__file__).parents[2] / "conf/monitor/default.yaml"
    values = yaml.safe_load(path.read_text())
    assert values == dataclasses.asdict(MonitorOptions())
    assert check_options(options_of(MonitorOptions), values, "monitor") == values


def test_the_best_evaluation_is_the_one_at_its_own_step():
    assert [progress(step).is_best for step in (0, 10, 20, 30, 40, 50, 60)] == [
        *(False, True, True, True, False, True, False)
    ]
