import dataclasses
import inspect
from pathlib import Path

import pytest
import torch
import yaml

from tests.monitor.fake import monitors, play, progress
from trainer.errors import ConfigError
from trainer.metrics import higher_is_better
from trainer.monitor import SINKS, Best, MonitorOptions, Sink
from trainer.options import check_options, options_of

METHODS = [name for name, _ in inspect.getmembers(Sink, inspect.isfunction) if not name.startswith("_")]


@pytest.fixture
def calls(monkeypatch):
    """A sink named "recorder" that notes what it is told."""
    monkeypatch.setattr(SINKS, "_entries", dict(SINKS._entries))
    noted = []

    @SINKS.register("recorder")
    class Recorder(Sink):
        def state_dict(self):
            noted.append("state_dict")
            return {"noted": len(noted)}

        def load_state_dict(self, state):
            noted.append(("load_state_dict", state))

    for name in set(METHODS) - {"state_dict", "load_state_dict"}:
        setattr(Recorder, name, lambda self, *args, name=name: noted.append((name, *args)))
    return noted


def test_every_sink_is_told_everything(tmp_path, calls):
    told, now, image = monitors(tmp_path, "recorder", "jsonl"), progress(5), torch.zeros(1, 1, 2, 2)
    told.tick(now)
    told.train(now, {"train/loss": 1.0}, {})
    told.evaluation(now, {"test/loss": 1.0}, {})
    told.curvature(now, {"conv": {"share": 0.5}})
    told.images(now, "train", image)
    told.predictions(now, "test", image, image, image)
    told.text(now, "sample", "To be")
    told.histograms(now, {"weight": image})
    told.message("hello", "warning")
    state = told.state_dict()
    told.load_state_dict(state)
    told.finish("finished", {"test/loss": 1.0})
    assert calls == [
        ("tick", now),
        ("train", now, {"train/loss": 1.0}, {}),
        ("evaluation", now, {"test/loss": 1.0}, {}),
        ("curvature", now, {"conv": {"share": 0.5}}),
        ("images", now, "train", image),
        ("predictions", now, "test", image, image, image),
        ("text", now, "sample", "To be"),
        ("histograms", now, {"weight": image}),
        ("message", "hello", "warning"),
        "state_dict",
        ("load_state_dict", {"noted": 10}),
        ("finish", "finished", {"test/loss": 1.0}),
    ]
    assert {call[0] for call in calls if isinstance(call, tuple)} | {"state_dict"} == set(METHODS)


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


@pytest.mark.parametrize(
    ("metric", "values", "better"),
    [
        ("test/accuracy", [0.1, 0.3, 0.3, 0.2, 0.4], [True, True, False, False, True]),
        ("test/loss", [2.0, float("nan"), 1.0, 1.5, 0.5], [True, False, True, False, True]),
        ("val/perplexity", [float("nan"), 9.0, 8.0], [False, True, True]),
    ],
)
def test_best(metric, values, better):
    best = Best(metric)
    assert [best.update(i, {metric: v, "other": i}) for i, v in enumerate(values)] == better
    assert best.step == max(i for i, is_better in enumerate(better) if is_better)
    assert best.metrics == {metric: values[best.step], "other": best.step}
    resumed = Best(metric)
    resumed.load_state_dict(best.state_dict())
    assert vars(resumed) == vars(best)


def test_an_evaluation_without_the_metric_is_not_the_best():
    assert not Best("test/accuracy").update(1, {"test/loss": 1.0})


def test_higher_is_better():
    assert higher_is_better("test_ema/accuracy")
    assert not higher_is_better("test/loss")
    assert not higher_is_better("val/perplexity")
