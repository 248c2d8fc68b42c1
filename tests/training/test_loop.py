"""The loop against plain torch: steps, accumulation, clipping, averages, faults, budgets."""

import copy
import itertools
import json
import os
import signal
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.training.kill_and_resume import differences
from trainer.cli.train import main
from trainer.config.compose import compose, hydra_session, resolve
from trainer.monitor import MonitorOptions, Monitors
from trainer.signals import StopSignal
from trainer.training.build import build
from trainer.training.loop import Trainer, TrainingFailed
from trainer.training.run import describe
from trainer.training.step_sync import StepSync

ARGS = Namespace(config_path=None, config_dir=None, config_name=None)
MLP = ["model=mlp", "data.batch_size=32", "data.crop_padding=0", "schedule=constant"]


def trainer_of(*overrides: str) -> Trainer:
    with hydra_session(ARGS) as session:
        trainer = build(resolve(compose(session, ARGS, list(overrides))))
    trainer.monitors = Monitors(describe(trainer, Path(), 0), MonitorOptions(sinks=[]))
    return trainer


def fit(trainer: Trainer, directory: Path) -> None:
    with StopSignal() as stop:
        trainer.fit(directory, trainer.monitors, stop)


def parameters(trainer: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def test_steps_are_those_of_a_plain_loop() -> None:
    trainer = trainer_of(*MLP, "optimizer=adamw", "loop.clip_norm=0.1", "loop.label_smoothing=0.1")
    model, batches = copy.deepcopy(trainer.model), copy.deepcopy(trainer.state.loader)
    options = {
        k: v for k, v in trainer.optimizer.defaults.items() if k in ("lr", "betas", "eps", "weight_decay")
    }
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    for _ in range(5):
        trainer.train_step()
        [(inputs, targets)] = batches.next_batch()
        nn.functional.cross_entropy(model(inputs), targets, label_smoothing=0.1).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    for ours, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["sgd", "adafisher"])
def test_micro_batches_add_up_to_the_batch(optimizer: str) -> None:
    whole, parts = (trainer_of(*MLP, f"optimizer={optimizer}", f"loop.accumulate={n}") for n in (1, 4))
    for _ in range(5):
        whole.train_step()
        parts.train_step()
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_average_is_torchs() -> None:
    trainer = trainer_of("loop.ema=0.7", "optimizer=sgd", "optimizer.lr=0.1")
    decays = iter([2 / 11, 3 / 12, 4 / 13, 5 / 14])  # the warm-up: (1 + t) / (10 + t), until it exceeds 0.7

    def average(old: torch.Tensor, new: torch.Tensor, count: object) -> torch.Tensor:
        return decay * old + (1 - decay) * new

    theirs = AveragedModel(trainer.model, avg_fn=average, use_buffers=True)
    theirs.n_averaged.fill_(1)  # otherwise it starts with the weights after the first step
    for _ in range(4):
        trainer.train_step()
        decay = next(decays)
        theirs.update_parameters(trainer.model)
    raw = parameters(trainer)
    assert trainer.state.ema is not None
    with trainer.state.ema.applied():
        for ours, expected in zip(trainer.model.parameters(), theirs.module.parameters(), strict=True):
            torch.testing.assert_close(ours, expected)
        mean = trainer.model.get_buffer("features.1.running_mean")
        torch.testing.assert_close(mean, theirs.module.get_buffer("features.1.running_mean"))
    assert differences(parameters(trainer), raw) == []


def poison(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes all coming batches not a number."""
    next_batch = trainer.state.loader.next_batch
    monkeypatch.setattr(
        trainer.state.loader, "next_batch", lambda: [(x * float("nan"), y) for x, y in next_batch()]
    )


@pytest.mark.parametrize("optimizer", ["adafisher", "adamw"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bad_step_changes_nothing(optimizer: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(f"optimizer={optimizer}", f"precision={precision}", "loop.ema=0.9")
    for _ in range(3):
        trainer.train_step()
    before = copy.deepcopy(trainer.state.tensors())
    with monkeypatch.context() as patch:
        poison(trainer, patch)
        trainer.train_step()
    after = trainer.state.tensors()
    for state in (before, after):
        for group in state["optimizer"]["param_groups"]:
            group.pop("lr")  # the schedule goes on
    assert differences(before, after) == []
    assert trainer.counters.skipped_steps == 1
    assert trainer.counters.step == 4
    trainer.train_step()
    assert trainer.counters.skipped_in_a_row == 0
    assert differences(before["model"], trainer.state.tensors()["model"]) != []


def test_too_many_bad_steps_name_step_loss_and_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of("loop.max_bad_steps=3")
    trainer.train_step()
    with torch.no_grad():
        trainer.model.get_parameter("features.4.weight").fill_(float("inf"))
    with pytest.raises(
        TrainingFailed, match=r"3 steps in a row .* step 4: loss nan, first in the output of features.4"
    ):
        fit(trainer, tmp_path)
    trainer = trainer_of("loop.max_bad_steps=1")
    poison(trainer, monkeypatch)
    with pytest.raises(TrainingFailed, match="first in the inputs"):
        trainer.train_step()


def test_an_overflow_lowers_the_loss_scale_and_is_no_fault() -> None:
    trainer = trainer_of("precision=fp16")
    trainer.train_step()
    scaler = trainer.precision.scaler
    scaler.update(2.0**40)
    before = parameters(trainer)
    trainer.train_step()
    assert scaler.get_scale() == 2.0**39
    assert trainer.counters.skipped_steps == 0
    assert differences(before, parameters(trainer)) == []


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_precisions_learn(precision: str, tmp_path: Path) -> None:
    trainer = trainer_of(f"precision={precision}", "loop.max_epochs=2")
    fit(trainer, tmp_path)
    assert trainer.counters.evaluated["test/accuracy"] > 0.8
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_evaluation_counts_every_sample_once() -> None:
    trainer = trainer_of("data.eval_batch_size=7", "loop.label_smoothing=0.5")
    metrics = trainer.evaluate_splits("")
    inputs, targets = trainer.data.evals["test"].batch(torch.arange(360), None)
    trainer.model.eval()
    logits = trainer.model(inputs)
    loss = nn.functional.cross_entropy(logits, targets).item()
    assert metrics["test/accuracy"] == (logits.argmax(1) == targets).sum().item() / 360
    assert metrics["test/loss"] == pytest.approx(loss, rel=1e-5)


def test_max_time_counts_training_seconds_over_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    # forward and backward take half a second, the update another, which is counted with the next step
    monkeypatch.setattr("trainer.training.loop.time.perf_counter", lambda: next(clock) / 2)
    run = [f"hydra.run.dir={tmp_path / 'run'}", "loop.max_time=8", "model.widths=[4]", "schedule.warmup=0.5"]
    seen = []
    step = Trainer.train_step

    def stop_at_six(self: Trainer) -> StepSync:
        agreed = step(self)
        seen.append(self.optimizer.param_groups[0]["lr"])
        if self.counters.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return agreed

    monkeypatch.setattr(Trainer, "train_step", stop_at_six)
    assert main(run) == 75
    assert main(run) == 0
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["step"] == len(seen) == 9  # before them 0, 0.5, 1.5, 2.5, 3.5, 4.5, stop, 5.5, 6, 7 seconds
    assert seen[:5] == pytest.approx([seconds / 4 * 1e-2 for seconds in (0, 0.5, 1.5, 2.5, 3.5)])
    assert 1e-2 > seen[5] > seen[6] > seen[7] > seen[8] > 0


def test_patience(tmp_path: Path) -> None:
    trainer = trainer_of(
        "optimizer=sgd", "optimizer.lr=0", "loop.patience=2", "model=mlp", "loop.max_epochs=9"
    )
    fit(trainer, tmp_path)
    assert trainer.counters.step == 3 * trainer.state.loader.batches_per_epoch
    assert trainer.counters.best_step == trainer.state.loader.batches_per_epoch


def test_an_optimizer_that_needs_a_graph_of_gradients(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_optimizer")
    trainer = trainer_of(
        "optimizer=pytorch_optimizer", "optimizer.algorithm=adahessian", "optimizer.lr=0.05", "model=mlp",
        "loop.max_epochs=3",
    )  # fmt: skip
    fit(trainer, tmp_path)
    assert trainer.counters.evaluated["test/accuracy"] > 0.5


@pytest.mark.compile
@pytest.mark.parametrize("optimizer", ["adafisher", "adamw"])
def test_compiled_models_train_as_others_do(optimizer: str) -> None:
    plain, compiled = (
        trainer_of("model=mlp", f"optimizer={optimizer}", f"loop.compile={flag}")
        for flag in ("false", "true")
    )
    for _ in range(13):  # refreshes at the first and the eleventh
        plain.train_step()
        compiled.train_step()
    for one, other in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_crash_leaves_a_status_and_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(self: Trainer) -> None:
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(Trainer, "train_step", crash)
    assert main([f"hydra.run.dir={tmp_path / 'run'}"]) == 1
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", "RuntimeError: out of luck")
    assert "Traceback" in (tmp_path / "run" / "run.log").read_text()
    assert "Traceback" not in capsys.readouterr().err
