"""The trace that a run of matrix products leaves, read as a browser would."""

import gzip
import json

import pytest
import torch

from tests.monitor.fake import progress, run_info
from trainer.cli.train import main
from trainer.monitor import Profile, Sink


class Listener(Sink):
    def __init__(self):
        self.messages, self.texts = [], []

    def message(self, text, level="info"):
        self.messages.append((text, level))

    def text(self, progress, tag, text):
        self.texts.append((progress.step, tag, text))


def profile(listener, run, steps):
    sink = Profile(run, steps)
    sink.attach(listener)
    return sink


def train(told, steps, first=1):
    for step in range(first, first + steps):
        torch.ones(8, 8) @ torch.ones(8, 8)
        told.tick(progress(step))


def recorded(path):
    """The numbers of products and of steps in a trace."""
    names = [event.get("name", "") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]]
    steps = {name for name in names if name.startswith("ProfilerStep#")}
    return names.count("aten::matmul"), len(steps)


@pytest.mark.parametrize("resumed", [0, 40])
def test_a_few_steps_are_recorded(tmp_path, resumed):
    listener = Listener()
    told = profile(listener, run_info(tmp_path, resumed_step=resumed), 5)
    train(told, 20, first=resumed + 1)
    told.finish("finished", {})
    first, last = resumed + 4, resumed + 8
    [path] = (tmp_path / "profile").iterdir()
    assert path.name == f"steps_{first}_to_{last}.json.gz"
    assert recorded(path) == (5, 5)
    [(message, level)] = listener.messages
    assert message.startswith(f"profile of steps {first} to {last}: {path}; open it at ")
    assert level == "info"
    [(step, tag, table)] = listener.texts
    assert (step, tag) == (last, f"profile/steps {first} to {last}")
    assert "aten::mm" in table


def test_a_run_that_ends_meanwhile_leaves_what_was_recorded(tmp_path):
    listener = Listener()
    told = profile(listener, run_info(tmp_path), 50)
    train(told, 6)
    told.finish("preempted", {})
    assert recorded(tmp_path / "profile" / "steps_4_to_6.json.gz")[0] == 3
    assert len(listener.messages) == 1


def test_a_run_that_is_too_short_says_so(tmp_path):
    listener = Listener()
    told = profile(listener, run_info(tmp_path), 5)
    train(told, 3)
    told.finish("finished", {})
    assert listener.messages == [("no profile: step 4 would have been the first recorded one", "warning")]
    assert not (tmp_path / "profile").exists()


def test_profile_of_a_run(tmp_path, capsys):
    given = ["model=mlp", "loop.max_steps=8", "profile=true", "monitor.profile_steps=3"]
    assert main([*given, "device=cpu", "monitor.sinks=[console]", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    path = tmp_path / "run" / "profile" / "steps_4_to_6.json.gz"
    assert recorded(path)[1] == 3
    assert str(path) in capsys.readouterr().out
