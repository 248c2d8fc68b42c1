"""What the memory of a step is for, against bytes counted by hand."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.distributed.ranks import on_ranks
from tests.distributed.runs import parts_of
from tests.training.helpers import MLP
from trainer.cli.train import main
from trainer.distributed.ranks import Ranks
from trainer.report.__main__ import main as report
from trainer.training.memory_profile import KeptForBackward, MemoryProfile
from trainer.training.run import describe
from trainer.training.step import TrainStep

INPUTS, HIDDEN, CLASSES, BATCH = 64, 6, 10, 32
"""Of the runs below."""
WEIGHTS = INPUTS * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES
LINE = [*MLP, f"data.batch_size={BATCH}", f"model.widths=[{HIDDEN}]", "loop.max_steps=3", "device=cpu"]


def test_what_autograd_keeps_counts_once_and_until_it_is_freed() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.BatchNorm1d(2))
    inputs = torch.randn(5, 3)
    expected = 4 * (
        5 * 3 + 5 * 4 + 5 * 2 + 2 * 2 + 5 * 2
    )  # inputs of all layers, mean and deviation, and of the square
    kept = KeptForBackward(model)
    with kept:
        for _ in range(2):
            assert kept.now == 0
            loss = model(inputs).square().sum()
            assert kept.now == expected
            loss.backward()
    assert kept.now == 0
    assert kept.peak == expected


@pytest.mark.parametrize(
    ("optimizer", "state"),
    [
        # and a number of steps for each of four parameters
        ("adamw", {"optimizer state": 2 * WEIGHTS + 4}),
        (
            "adafisher optimizer.update_interval=2",
            # and a number of steps; weights and biases have two factors each
            {
                "optimizer state": WEIGHTS + 4,
                "curvature factors": 2 * (INPUTS + 1 + HIDDEN + HIDDEN + 1 + CLASSES),
            },
        ),
    ],
)
def test_of_a_run(
    tmp_path: Path, optimizer: str, state: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    line = [*LINE, *f"optimizer={optimizer} loop.log_every=1 monitor.sinks=[jsonl,runlog]".split()]
    plain, measured = tmp_path / "plain", tmp_path / "measured"
    assert main([*line, f"hydra.run.dir={plain}"]) == 0
    assert main([*line, "profile=memory", "monitor.profile_steps=2", f"hydra.run.dir={measured}"]) == 0
    assert (plain / "metrics.jsonl").read_bytes() == (measured / "metrics.jsonl").read_bytes()
    record = json.loads((measured / "profile/memory.json").read_text())
    assert record["steps"] == [1, 2]
    peak = record["mib"].pop("peak of the process")
    activations = record["mib"].pop("activations")
    expected = {"parameters": WEIGHTS, "gradients": WEIGHTS, **state}
    assert record["mib"] == {name: 4 * count / 2**20 for name, count in expected.items()}
    assert 4 * BATCH * (INPUTS + HIDDEN + CLASSES) / 2**20 < activations < peak
    assert "memory in MiB of steps 1 to 2: parameters " in (measured / "run.log").read_text()
    capsys.readouterr()
    assert report([str(measured)]) == 0
    assert "Memory of a step in MiB" in capsys.readouterr().out


def measured(ranks: Ranks, *options: str) -> dict[str, float]:
    parts = parts_of(ranks, *LINE, "optimizer=adamw", *options)
    profile, train_step = MemoryProfile(describe(parts, Path(), 0), parts, 1), TrainStep(parts)
    with profile.step():
        train_step()
    return profile.mib


@pytest.mark.ranks
def test_a_rank_counts_its_shards_and_its_part_of_the_batch() -> None:
    """What FSDP gathers of a layer that it keeps for the backward pass is no activation."""
    [alone] = on_ranks(1, measured, "loop.accumulate=2")
    first, _ = on_ranks(2, measured, "parallel=fsdp")
    assert first["activations"] == alone["activations"]
    for name in ("parameters", "gradients"):
        assert first[name] == alone[name] / 2
    assert first["optimizer state"] == pytest.approx(alone["optimizer state"] / 2, rel=0.01)
