"""The callbacks of the package against computations that share nothing with them."""

import copy
import math
import shlex
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.helpers import MLP, trainer_of
from tests.training.kill_and_resume import compare, content
from trainer.callbacks import Callback, Training
from trainer.callbacks.early_stop import EarlyStop
from trainer.callbacks.freeze_until import FreezeUntil
from trainer.callbacks.sharpness import largest_eigenvalue
from trainer.cli.train import main
from trainer.data import Batch, TrainLoader
from trainer.monitor import MonitorOptions, Monitors, Progress, Sink
from trainer.training.loop import Trainer
from trainer.training.run import describe

SMALL = [*MLP, "model.widths=[6]", "optimizer=sgd", "loop.eval_every=1000"]


class Reported(Sink):
    """Keeps what callbacks report."""

    def __init__(self) -> None:
        self.records: list[tuple[int, dict[str, float]]] = []

    def scalars(self, progress: Progress, values: Mapping[str, float]) -> None:
        self.records.append((progress.step, dict(values)))


def trainer_with(folder: Path, *overrides: str) -> tuple[Trainer, list[tuple[int, dict[str, float]]]]:
    """A trainer, and what its callbacks will have reported."""
    trainer, sink = trainer_of(folder, *overrides), Reported()
    info = describe(trainer.parts, folder, 0)
    trainer.monitors = Monitors(info, MonitorOptions(sinks=[]), {"reported": sink})
    return trainer, sink.records


def test_noise_scale_is_that_of_the_gradients_of_samples(tmp_path: Path) -> None:
    """With a learning rate of 0 the averages go to what the gradients of all samples say."""
    line = [*SMALL, "callbacks=[gradient_noise_scale]", "callbacks.gradient_noise_scale.decay=0.999"]
    trainer, reported = trainer_with(
        tmp_path, *line, "loop.accumulate=4", "data.batch_size=64", "optimizer.lr=0", "loop.max_steps=440"
    )
    model, data = copy.deepcopy(trainer.parts.model), trainer.parts.data
    inputs, targets = data.train.batch(torch.arange(len(data.train)), None)
    names, values = zip(*model.named_parameters(), strict=True)

    def loss_of(parameters: tuple[Tensor, ...], sample: Tensor, target: Tensor) -> Tensor:
        output = torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (sample[None],))
        return nn.functional.cross_entropy(output, target[None])

    each = torch.func.vmap(torch.func.grad(loss_of), (None, 0, 0))(values, inputs, targets)
    rows = torch.cat([part.flatten(1) for part in each], 1)  # [samples, parameters]
    noise, signal = rows.var(0).sum().item(), rows.mean(0).square().sum().item()
    trainer.fit()
    step, last = reported[-1]
    assert step == 440
    assert last["gradient_noise_scale/noise"] == pytest.approx(noise, rel=0.06)
    assert last["gradient_noise_scale/signal"] == pytest.approx(signal, rel=0.06)
    assert last["gradient_noise_scale/scale"] == pytest.approx(noise / signal, rel=0.1)


def test_update_ratios_are_those_of_plain_sgd(tmp_path: Path) -> None:
    line = [
        *SMALL,
        "callbacks=[update_ratios]",
        "optimizer.momentum=0",
        "optimizer.lr=0.3",
        "loop.log_every=2",
    ]
    trainer, reported = trainer_with(tmp_path, *line, "loop.max_steps=2")
    model, loader = copy.deepcopy(trainer.parts.model), copy.deepcopy(trainer.parts.state.loader)
    trainer.fit()
    for number in range(2):
        [(inputs, targets)] = loader.next_batch()
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        ratios = {
            f"update_ratio/{name}": (0.3 * p.grad.norm() / p.norm()).item()  # type: ignore[union-attr]
            for name, p in model.named_parameters()
            if p.norm()
        }
        if number == 1:
            assert reported == [(2, pytest.approx(ratios, rel=1e-4))]
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.3 * p.grad  # type: ignore[operator]


def test_frozen_parameters_are_as_if_they_were_not_trained(tmp_path: Path) -> None:
    """Against torch with requires_grad, by an optimizer with momentum, decay and a clipped norm."""
    line = [*SMALL, "optimizer.weight_decay=0.1", "loop.clip_norm=0.5", "loop.max_steps=5"]
    frozen = ["callbacks=[freeze_until]", "callbacks.freeze_until.parameters=[4.*]"]
    for until in ("3", "0.6"):
        trainer, _ = trainer_with(tmp_path / until, *line, *frozen, f"callbacks.freeze_until.until={until}")
        model, loader = copy.deepcopy(trainer.parts.model), copy.deepcopy(trainer.parts.state.loader)
        options = trainer.parts.optimizer.defaults
        theirs = torch.optim.SGD(
            model.parameters(), lr=options["lr"], momentum=0.9, nesterov=options["nesterov"], weight_decay=0.1
        )
        trainer.fit()
        for number in range(5):
            for name, p in model.named_parameters():
                p.requires_grad_(number >= 3 or not name.startswith("4."))
            [(inputs, targets)] = loader.next_batch()
            theirs.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            theirs.step()
        for ours, expected in zip(trainer.parts.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, expected)


class Seen(Callback):
    """The parameters that have a gradient, after each micro-batch."""

    def __init__(self) -> None:
        self.names: list[set[str]] = []

    def after_backward(self, training: Training, batch: Batch, last: bool) -> None:
        named = training.model.named_parameters()
        self.names.append({name for name, p in named if p.grad is not None})


def test_no_micro_batch_leaves_a_gradient_of_frozen_parameters(tmp_path: Path) -> None:
    line = [*SMALL, "loop.accumulate=2", "loop.max_steps=1", "callbacks=[freeze_until]"]
    frozen = ["callbacks.freeze_until.parameters=[4.*]", "callbacks.freeze_until.until=9"]
    trainer, _ = trainer_with(tmp_path, *line, *frozen)
    trained = {name for name, _ in trainer.parts.model.named_parameters() if not name.startswith("4.")}
    seen = Seen()
    trainer.callbacks.by_name["seen"] = seen
    trainer.fit()
    assert seen.names == [trained, trained]


def freezes(callback: FreezeUntil, fraction: float) -> bool:
    """Whether it drops a gradient at that share of the budget."""
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    training: Any = SimpleNamespace(model=model, progress=lambda: SimpleNamespace(fraction=fraction, step=0))
    callback.after_backward(training, (torch.ones(1), torch.ones(1)), last=True)
    return model.weight.grad is None


def test_what_has_been_trained_is_not_frozen_again_by_a_larger_budget() -> None:
    first, second = (FreezeUntil(parameters=["*"], until=0.5) for _ in range(2))
    assert [freezes(first, fraction) for fraction in (0.4, 0.5)] == [True, False]
    second.load_state_dict(first.state_dict())
    assert not freezes(second, 0.2)
    second.load_state_dict({})  # as of an older version
    assert freezes(second, 0.2)


def test_sharpness_is_the_largest_eigenvalue_of_the_hessian(tmp_path: Path) -> None:
    line = [
        *SMALL,
        "callbacks=[sharpness]",
        "callbacks.sharpness.samples=40",
        "callbacks.sharpness.tolerance=1e-6",
    ]
    trainer, reported = trainer_with(
        tmp_path, *line, "loop.max_steps=2", "callbacks.sharpness.iterations=500"
    )
    trainer.fit()
    model, data = trainer.parts.model.eval(), trainer.parts.data
    places = torch.linspace(0, len(data.train) - 1, 40).round().long()
    inputs, targets = data.train.batch(places, None)
    parameters = dict(model.named_parameters())
    sizes = {name: p.shape for name, p in parameters.items()}
    flat = torch.cat([p.detach().flatten() for p in parameters.values()])

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([size.numel() for size in sizes.values()])
        named = {name: part.view(sizes[name]) for name, part in zip(sizes, parts, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, named, (inputs,)), targets)

    exact = torch.linalg.eigvalsh(torch.func.hessian(loss)(flat))[-1].item()
    assert reported == [(2, {"sharpness/largest_eigenvalue": pytest.approx(exact, rel=1e-3)})]


@pytest.mark.parametrize("values", [[-9.0, -1.0, 2.0, 3.0], [-1.0, 0.5, 4.0, 1.0], [-3.0, -2.0, -5.0, -1.0]])
def test_the_largest_eigenvalue_need_not_be_the_largest_in_size(values: list[float]) -> None:
    basis = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    matrix = basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T
    start = torch.randn(4, dtype=torch.float64)
    value, vector = largest_eigenvalue(lambda v: matrix @ v, start, 5000, 1e-12)
    assert value == pytest.approx(max(values), abs=1e-4)
    torch.testing.assert_close(matrix @ vector, max(values) * vector, rtol=1e-3, atol=1e-3)


def stops_at(callback: EarlyStop, values: list[float]) -> int | None:
    """The number of the evaluation, from 1, after which the callback asks for the end."""
    asked: list[str] = []
    training: Any = SimpleNamespace(primary="test/loss", stop=asked.append)
    for number, value in enumerate(values, 1):
        callback.after_evaluation(training, {"test/loss": value, "test/accuracy": 1 - value})
        if asked:
            return number
    return None


@pytest.mark.parametrize(
    ("options", "values", "expected"),
    [
        ({"patience": 2}, [0.9, 0.8, 0.85, 0.79, 0.8, 0.8], 6),
        ({"patience": 2, "min_delta": 0.05}, [0.9, 0.88, 0.84, 0.82, 0.8], 5),
        ({"patience": 2, "min_delta": 0.05, "metric": "test/accuracy"}, [0.9, 0.88, 0.84, 0.82, 0.8], 5),
        ({"patience": 1}, [math.nan], 1),
        ({"patience": 3}, [0.9, math.nan, 0.8, 0.7], None),
        ({"target": 0.5}, [0.9, 0.51, 0.5], 3),
        ({"target": 0.5, "metric": "test/accuracy"}, [0.9, 0.51, 0.5], 3),
        ({"target": 0.98, "min_delta": 0.01, "metric": "test/accuracy"}, [0.025, 0.019], 2),
    ],
)
def test_early_stop(options: dict[str, Any], values: list[float], expected: int | None) -> None:
    assert stops_at(EarlyStop(**options), values) == expected


def test_early_stop_goes_on_from_its_state() -> None:
    first, second = EarlyStop(patience=3), EarlyStop(patience=3)
    assert stops_at(first, [0.5, 0.6, 0.6]) is None
    second.load_state_dict(first.state_dict())
    assert stops_at(second, [0.6]) == 1


def test_a_target_that_was_reached_ends_a_resumed_run_at_once() -> None:
    first, second = EarlyStop(target=0.5, min_delta=0.1), EarlyStop(target=0.5, min_delta=0.1)
    assert stops_at(first, [0.55, 0.5]) == 2
    second.load_state_dict(first.state_dict())
    asked: list[str] = []
    second.start(SimpleNamespace(primary="test/loss", stop=asked.append))  # type: ignore[arg-type]
    assert len(asked) == 1


def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Averages, an eigenvector and a count of evaluations are in the checkpoint."""
    watching = "callbacks=[gradient_noise_scale,sharpness,update_ratios,early_stop]"
    line = [*MLP, watching, "model.widths=[6]", "loop.accumulate=2", "loop.max_steps=8", "loop.eval_every=2"]
    line += ["callbacks.early_stop.patience=9", "callbacks.sharpness.samples=20", "loop.log_every=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*line, "monitor.sinks=[jsonl]", f"hydra.run.dir={whole}"]) == 0
    next_batch, seen = TrainLoader.next_batch, []

    def interrupted(loader: TrainLoader) -> list[Batch]:
        seen.append(loader.batch)
        if len(seen) == 5:
            signal.raise_signal(signal.SIGTERM)
        return next_batch(loader)

    monkeypatch.setattr(TrainLoader, "next_batch", interrupted)
    again = [*line, "monitor.sinks=[jsonl]", f"hydra.run.dir={parts}"]
    assert [main(again) for _ in range(2)] == [75, 0]
    assert compare(parts, whole) == []
    states = content(whole)["values"]["callbacks"]
    assert states["sharpness"]["vector"].numel() > 0
    assert states["early_stop"]["best"] is not None


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (
            "callbacks=[early_stop]",
            "callbacks=early_stop: set callbacks.early_stop.patience or callbacks.early_stop.t",
        ),
        (
            "callbacks=[early_stop] callbacks.early_stop.target=1 callbacks.early_stop.metric=val/loss",
            "callbacks.early_stop.metric=val/loss is of no split that is evaluated (known: test)",
        ),
        (
            "callbacks=[early_stop] callbacks.early_stop.target=1 callbacks.early_stop.metric=test_ema/loss",
            "callbacks.early_stop.metric=test_ema/loss is of averaged weights: set loop.ema, such as 0.999",
        ),
        (
            "callbacks=[early_stop] callbacks.early_stop.patience=0",
            "callbacks.early_stop.patience=0 is wrong: it must be an integer >= 1 or null",
        ),
        (
            "callbacks=[early_stop] callbacks.early_stop.patient=1",
            "unknown option callbacks.early_stop.patient; did you",
        ),
        ("callbacks=[early_stopp]", "unknown option callbacks=early_stopp; did you mean early_stop?"),
        (
            "callbacks=[gradient_noise_scale]",
            "compares a micro-batch with the batch: set loop.accumulate=2 or more",
        ),
        ("callbacks=[freeze_until]", "callbacks.freeze_until.parameters is required"),
        (
            "callbacks.early_stop.patience=3",
            "unknown option callbacks.early_stop.patience: early_stop is not chosen, add callbacks=[early_stop]",
        ),
        (
            "callbacks=[freeze_until] callbacks.freeze_until.until=1 callbacks.freeze_until.parameters=[body.*]",
            "callbacks.freeze_until.parameters: body.* matches no parameter",
        ),
        (
            "callbacks=[freeze_until] callbacks.freeze_until.until=1 'callbacks.freeze_until.parameters=[\"*\"]'",
            "callbacks.freeze_until.parameters matches all parameters: leave some to be trained",
        ),
    ],
)
def test_mistakes_are_one_line(
    line: str, error: str, refused: Callable[[int, str], None], tmp_path: Path
) -> None:
    refused(main([*shlex.split(line), f"hydra.run.dir={tmp_path / 'run'}"]), error)
    assert not (tmp_path / "run").exists()
