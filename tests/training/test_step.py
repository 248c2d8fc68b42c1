"""Steps against plain torch: accumulation, clipping, averages, faults, loss scales, compiled models."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.training.helpers import MLP, parameters, parts_of, poison
from tests.training.kill_and_resume import differences
from trainer.training.step import TrainStep

IN_FLOAT32 = "deterministic=true"
"""The products of AdaFisher's polar factors, which bfloat16 would round differently for sums in another order."""


def test_steps_are_those_of_a_plain_loop() -> None:
    parts = parts_of(*MLP, "optimizer=adamw", "loop.clip_norm=0.1", "loop.label_smoothing=0.1")
    train_step = TrainStep(parts)
    model, batches = copy.deepcopy(parts.model), copy.deepcopy(parts.state.loader)
    options = {
        k: v for k, v in parts.optimizer.defaults.items() if k in ("lr", "betas", "eps", "weight_decay")
    }
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    for _ in range(5):
        train_step()
        [(inputs, targets)] = batches.next_batch()
        nn.functional.cross_entropy(model(inputs), targets, label_smoothing=0.1).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    for ours, theirs in zip(parts.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["sgd", "adafisher", "adafisher_calibrated"])
def test_micro_batches_add_up_to_the_batch(optimizer: str) -> None:
    at_once, in_four = (
        parts_of(*MLP, IN_FLOAT32, f"optimizer={optimizer}", f"loop.accumulate={n}") for n in (1, 4)
    )
    for parts in (at_once, in_four):
        train_step = TrainStep(parts)
        for _ in range(5):
            train_step()
    for one, other in zip(at_once.model.parameters(), in_four.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_average_is_torchs() -> None:
    parts = parts_of("loop.ema=0.7", "optimizer=sgd", "optimizer.lr=0.1")
    train_step = TrainStep(parts)
    decays = iter([2 / 11, 3 / 12, 4 / 13, 5 / 14])  # the warm-up: (1 + t) / (10 + t), until it exceeds 0.7

    def average(old: torch.Tensor, new: torch.Tensor, count: object) -> torch.Tensor:
        return decay * old + (1 - decay) * new

    theirs = AveragedModel(parts.model, avg_fn=average, use_buffers=True)
    theirs.n_averaged.fill_(1)  # otherwise it starts with the weights after the first step
    for _ in range(4):
        train_step()
        decay = next(decays)
        theirs.update_parameters(parts.model)
    raw = parameters(parts)
    assert parts.state.ema is not None
    with parts.state.ema.applied():
        for ours, expected in zip(parts.model.parameters(), theirs.module.parameters(), strict=True):
            torch.testing.assert_close(ours, expected)
        mean = parts.model.get_buffer("features.1.running_mean")
        torch.testing.assert_close(mean, theirs.module.get_buffer("features.1.running_mean"))
    assert differences(parameters(parts), raw) == []


@pytest.mark.parametrize("optimizer", ["adafisher", "adamw"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bad_step_changes_nothing(optimizer: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = parts_of(f"optimizer={optimizer}", f"precision={precision}", "loop.ema=0.9")
    train_step = TrainStep(parts)
    for _ in range(3):
        train_step()
    before = copy.deepcopy(parts.state.tensors())
    with monkeypatch.context() as patch:
        poison(parts, patch)
        outcome = train_step()
    assert outcome.warning == "step 4 skipped: non-finite loss or gradient (loss nan)"
    after = parts.state.tensors()
    for state in (before, after):
        for group in state["optimizer"]["param_groups"]:
            group.pop("lr")  # the schedule goes on
    assert differences(before, after) == []
    assert parts.counters.skipped_steps == 1
    assert parts.counters.step == 4
    train_step()
    assert parts.counters.skipped_in_a_row == 0
    assert differences(before["model"], parts.state.tensors()["model"]) != []


@pytest.mark.parametrize("optimizer", ["adafisher", "adamw", "sgd", "muon", "adafactor"])
def test_a_gradient_beyond_float32_is_not_clipped_but_skipped(optimizer: str) -> None:
    """Infinite, or finite with an infinite norm: divided by it, it would be a step of zeros or of nan."""
    parts = parts_of(*MLP, f"optimizer={optimizer}", "loop.clip_norm=1")
    train_step = TrainStep(parts)
    train_step()
    before = copy.deepcopy(parts.state.tensors())
    for factor in (1e25, math.inf):
        with next(parts.model.parameters()).register_hook(lambda gradient, by=factor: gradient * by):
            assert "non-finite loss or gradient" in str(train_step().warning)
    after = parts.state.tensors()
    assert differences(before, after) == []
    assert parts.counters.skipped_steps == 2
    train_step()
    assert all(p.isfinite().all() for p in parts.model.parameters())


def test_an_overflow_lowers_the_loss_scale_and_is_no_fault() -> None:
    parts = parts_of("precision=fp16")
    train_step = TrainStep(parts)
    train_step()
    scaler = parts.precision.scaler
    scaler.update(2.0**40)
    before = parameters(parts)
    train_step()
    assert scaler.get_scale() == 2.0**39
    assert parts.counters.skipped_steps == 0
    assert differences(before, parameters(parts)) == []


@pytest.mark.compile
@pytest.mark.parametrize("optimizer", ["adafisher", "adamw"])
def test_compiled_models_train_as_others_do(optimizer: str) -> None:
    plain, compiled = (
        parts_of("model=mlp", IN_FLOAT32, f"optimizer={optimizer}", f"loop.compile={flag}")
        for flag in ("false", "true")
    )
    for parts in (plain, compiled):
        train_step = TrainStep(parts)
        for _ in range(13):  # refreshes at the first and the eleventh
            train_step()
    for one, other in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_metrics_that_wait_for_a_report_take_no_more_room_with_every_step() -> None:
    parts = parts_of(*MLP)
    train_step = TrainStep(parts)
    for _ in range(5):
        train_step()
    totals = parts.state.window
    assert totals[-1] == 5 * 32
