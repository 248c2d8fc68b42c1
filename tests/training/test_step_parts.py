"""Where the time of a step goes: parts of it that add up to no more than all, and change nothing that is learnt."""

import json
import time
from pathlib import Path

import pytest
import torch

from tests.training.helpers import MLP
from trainer.cli.train import main
from trainer.metrics import STEP_PARTS
from trainer.report.__main__ import main as report
from trainer.report.read_runs import read_runs
from trainer.training.step_parts import StepParts


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_seconds_are_added_up_and_taken(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    clock, waited = [10.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    parts = StepParts(torch.device(device), on=True)
    for seconds in (1.0, 2.0):
        with parts("optimizer"):
            clock[0] += seconds
        clock[0] += 5.0
    with parts("refresh"):
        clock[0] += 4.0
    assert parts.take() == {"optimizer": 3.0, "refresh": 4.0}
    assert parts.take() == {}
    assert len(waited) == (6 if device == "cuda" else 0)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("adafisher optimizer.update_interval=2", {*STEP_PARTS}),
        ("sgd", {*STEP_PARTS} - {"refresh"}),
    ],
)
def test_of_a_run(
    tmp_path: Path, optimizer: str, expected: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = [*MLP, *f"optimizer={optimizer} loop.max_steps=8 loop.log_every=4 monitor.sinks=[jsonl]".split()]
    assert main([*line, f"hydra.run.dir={tmp_path / 'plain'}"]) == 0
    assert main([*line, "profile=parts", f"hydra.run.dir={tmp_path / 'parts'}"]) == 0
    plain, parts = tmp_path / "plain", tmp_path / "parts"
    assert (plain / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
    assert not (parts / "profile").exists()
    for path, names in ((plain, set()), (parts, expected)):
        records = [json.loads(text) for text in (path / "clock.jsonl").read_text().splitlines()]
        for record in records:
            if record["kind"] == "train":
                shares = {name: record[name] for name in STEP_PARTS if name in record}
                assert shares.keys() == names
                assert all(share > 0 for share in shares.values())
                assert sum(shares.values()) + record["data_wait"] <= 1
    assert expected <= read_runs([parts])[0].speeds.keys()
    capsys.readouterr()
    for path, shown in ((plain, False), (parts, True)):
        assert report([str(path)]) == 0
        assert ("Shares of the training time" in capsys.readouterr().out) == shown
