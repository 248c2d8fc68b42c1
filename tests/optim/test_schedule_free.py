"""Schedule-free optimizers against the authors' package and formulas; what is evaluated and saved is the average."""

import copy
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.distributed.ranks import on_ranks
from tests.distributed.runs import assert_same, outcome, parts_of, steps
from tests.training.helpers import MLP, trainer_of
from tests.training.kill_and_resume import compare
from trainer.checkpoint.storage import list_checkpoints
from trainer.checkpoint.weights import weights_of
from trainer.cli.stored_run import load
from trainer.cli.train import main
from trainer.data import Batch, TrainLoader
from trainer.distributed.ranks import Ranks
from trainer.optim import OPTIMIZERS, param_groups
from trainer.optim.schedule_free import ScheduleFree
from trainer.optim.schedules import SCHEDULES, Schedule
from trainer.training.evaluation import evaluate_with_average

MODES = (
    "model=mlp model.widths=[6] data.batch_size=64 data.crop_padding=0 schedule=constant "
    "optimizer=schedulefree_adamw"
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def ours(model: nn.Module, name: str, **options: float) -> ScheduleFree:
    checked = OPTIMIZERS.check({"name": name, **options})
    optimizer = OPTIMIZERS.build(checked, model, param_groups(model, True))
    assert isinstance(optimizer, ScheduleFree)
    return optimizer


def backward(model: nn.Module, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    model.zero_grad()
    model(inputs).square().mean().backward()


def assert_close(model: nn.Module, twin: nn.Module) -> None:
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("name", ["schedulefree_adamw", "schedulefree_sgd"])
def test_steps_are_those_of_the_authors_package(name: str, warmup: int, foreach: bool) -> None:
    package = pytest.importorskip("schedulefree")
    model = network()
    twin = copy.deepcopy(model)
    options = {"lr": 0.05, "weight_decay": 0.1}
    optimizer = ours(model, name, beta=0.8, **options)
    rates = Schedule(optimizer, SCHEDULES.build({"name": "constant"}), warmup)
    if name.endswith("sgd"):
        theirs = package.SGDScheduleFree(
            twin.parameters(), momentum=0.8, warmup_steps=warmup, foreach=foreach, **options
        )
    else:
        theirs = package.AdamWScheduleFree(
            twin.parameters(), betas=(0.8, 0.999), warmup_steps=warmup, foreach=foreach, **options
        )
    for number in range(20):
        optimizer.train()
        theirs.train()
        rates.update(number / 20, number)
        backward(model, number)
        backward(twin, number)
        optimizer.step()
        theirs.step()
        assert_close(model, twin)
        optimizer.eval()
        theirs.eval()
        assert_close(model, twin)


def test_the_average_weighs_steps_by_the_square_of_their_rate() -> None:
    """SGD along a gradient of one: z is known, and x is a mean of z."""
    parameter = nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = ScheduleFree([{"params": [parameter]}], {"lr": 0.0, "beta": 0.75, "weight_decay": 0.0})
    rates, z, passed = [0.0, 0.1, 0.2, 0.4, 0.3], 0.0, []
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        z -= rate
        passed.append(z)
    x = sum(rate**2 * z for rate, z in zip(rates, passed, strict=True)) / sum(rate**2 for rate in rates)
    assert parameter.item() == pytest.approx(0.25 * z + 0.75 * x)
    optimizer.eval()
    assert parameter.item() == pytest.approx(x)


def test_the_average_is_evaluated_saved_and_followed_and_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    line = [*MLP, "optimizer=schedulefree_adamw", "loop.max_steps=6", "loop.eval_every=1000"]
    quiet, busy = (
        trainer_of(tmp_path / name, *line, *more)
        for name, more in (
            ("quiet", []),
            ("busy", ["checkpoint.every_steps=1", "loop.ema=0", "loop.eval_every=2"]),
        )
    )
    quiet.fit()
    busy.fit()
    parts = busy.parts
    pairs = zip(parts.model.parameters(), quiet.parts.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    states = [parts.optimizer.state[p] for p in parts.model.parameters()]
    saved = weights_of(list_checkpoints(tmp_path / "busy")[0])
    assert parts.state.ema is not None
    for (name, parameter), state in zip(parts.model.named_parameters(), states, strict=True):
        assert torch.equal(saved[name], state["x"])
        assert torch.equal(parts.state.ema.average[name], state["x"])  # its decay is 0
        assert not torch.equal(parameter, state["x"])
    evaluated = parts.counters.evaluated
    assert evaluated["test/loss"] == evaluated["test_ema/loss"]
    load(parts, list_checkpoints(tmp_path / "busy")[0])  # as the commands for a trained model do
    assert evaluate_with_average(parts) == evaluated
    for parameter, state in zip(parts.model.parameters(), states, strict=True):
        assert torch.equal(parameter, state["x"])


def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    line = [*MODES.split(), "loop.max_steps=9", "loop.eval_every=3", "loop.ema=0.9", "monitor.sinks=[jsonl]"]
    assert main([*line, f"hydra.run.dir={whole}"]) == 0
    next_batch, seen = TrainLoader.next_batch, []

    def interrupted(loader: TrainLoader) -> list[Batch]:
        seen.append(loader.batch)
        if len(seen) == 4:
            signal.raise_signal(signal.SIGTERM)
        return next_batch(loader)

    monkeypatch.setattr(TrainLoader, "next_batch", interrupted)
    assert [main([*line, f"hydra.run.dir={parts}"]) for _ in range(2)] == [75, 0]
    assert compare(parts, whole) == []


def result(ranks: Ranks, line: str) -> dict[str, object]:
    return outcome(steps(parts_of(ranks, *line.split()), 4))


@pytest.mark.ranks
def test_on_shards(tmp_path: Path) -> None:
    [alone] = on_ranks(1, result, MODES)
    for one in on_ranks(2, result, f"{MODES} parallel=fsdp"):
        assert_same(alone, one)
