"""The loop from its first step to its end: budgets, patience, failures, and that runs learn."""

import itertools
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.helpers import poison, trainer_of
from tests.training.kill_and_resume import compare
from trainer.callbacks import CALLBACKS, Callback, Training
from trainer.checkpoint import storage, writing
from trainer.cli.train import main
from trainer.data import Batch, TrainLoader
from trainer.rundir.status import read_status
from trainer.training.nonfinite import TrainingFailed
from trainer.training.step import StepOutcome, TrainStep

SHORT = ["model.widths=[4]", "data.batch_size=64", "loop.max_steps=6", "monitor.sinks=[jsonl]"]


def test_too_many_bad_steps_name_step_loss_and_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path, "loop.max_bad_steps=3")
    trainer.train_step()
    with torch.no_grad():
        trainer.parts.model.get_parameter("features.4.weight").fill_(float("inf"))
    with pytest.raises(
        TrainingFailed, match=r"3 steps in a row .* step 4: loss nan, first in the output of features.4"
    ):
        trainer.fit()
    trainer = trainer_of(tmp_path, "loop.max_bad_steps=1")
    poison(trainer.parts, monkeypatch)
    with pytest.raises(TrainingFailed, match="first in the inputs"):
        trainer.train_step()


@pytest.mark.parametrize(
    "precision",
    ["fp32", "tf32", "bf16", pytest.param("fp16", marks=pytest.mark.slow)],  # on a CPU
)
def test_precisions_learn(precision: str, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, f"precision={precision}", "loop.max_epochs=2")
    trainer.fit()
    assert trainer.counters.evaluated["test/accuracy"] > 0.8
    assert all(p.dtype == torch.float32 for p in trainer.parts.model.parameters())


def test_max_time_counts_training_seconds_over_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    # forward and backward take half a second, the update another, which is counted with the next step
    monkeypatch.setattr("trainer.training.step.time.perf_counter", lambda: next(clock) / 2)
    run = [f"hydra.run.dir={tmp_path / 'run'}", "loop.max_time=8", "model.widths=[4]", "schedule.warmup=0.5"]
    seen = []
    step = TrainStep.__call__

    def stop_at_six(self: TrainStep) -> StepOutcome:
        outcome = step(self)
        seen.append(self.parts.optimizer.param_groups[0]["lr"])
        if self.parts.counters.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return outcome

    monkeypatch.setattr(TrainStep, "__call__", stop_at_six)
    assert main(run) == 75
    assert main(run) == 0
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["step"] == len(seen) == 9  # before them 0, 0.5, 1.5, 2.5, 3.5, 4.5, stop, 5.5, 6, 7 seconds
    assert seen[:5] == pytest.approx([seconds / 4 * 1e-2 for seconds in (0, 0.5, 1.5, 2.5, 3.5)])
    assert 1e-2 > seen[5] > seen[6] > seen[7] > seen[8] > 0


def test_a_budget_that_is_over_at_once(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "optimizer=sgd", "model=mlp", "loop.max_time=1e-9")
    trainer.fit()
    assert (trainer.counters.step, trainer.counters.best_step) == (1, 1)


def test_patience(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path, "optimizer=sgd", "optimizer.lr=0", "loop.patience=2", "model=mlp", "loop.max_epochs=9"
    )
    trainer.fit()
    assert trainer.counters.step == 3 * trainer.parts.state.loader.batches_per_epoch
    assert trainer.counters.best_step == trainer.parts.state.loader.batches_per_epoch


def test_an_optimizer_that_needs_a_graph_of_gradients(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_optimizer")
    trainer = trainer_of(
        tmp_path, "optimizer=pytorch_optimizer", "optimizer.algorithm=adahessian", "optimizer.lr=0.05", "model=mlp",
        "loop.max_epochs=3",
    )  # fmt: skip
    trainer.fit()
    assert trainer.counters.evaluated["test/accuracy"] > 0.5


def test_a_crash_leaves_a_status_and_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(self: TrainStep) -> None:
        raise RuntimeError("out of\nluck")

    monkeypatch.setattr(TrainStep, "__call__", crash)
    assert main([f"hydra.run.dir={tmp_path / 'run'}"]) == 1
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["error"]) == ("failed", "RuntimeError: out of luck")
    assert "Traceback" in (tmp_path / "run" / "run.log").read_text()
    assert "Traceback" not in capsys.readouterr().err


class AsksOnce(Callback):
    """Asks for the end in one step, at one of the moments."""

    def __init__(self, *, moment: str, step: int) -> None:
        def ask(training: Training, *_: Any) -> None:
            # a step is counted after its update
            if training.progress().step + (moment == "after_backward") == step:
                training.stop("asked once")

        setattr(self, moment, ask)


@pytest.fixture
def asks_once() -> Iterator[str]:
    CALLBACKS.register("asks_once")(AsksOnce)
    yield "asks_once"
    del CALLBACKS._entries["asks_once"]


@pytest.mark.parametrize(
    ("moment", "asked", "stopped", "end"),
    [("after_update", 2, 2, 3), ("after_update", 2, 3, 3), ("after_backward", 2, 2, 2)],
)
def test_a_request_for_the_end_outlives_a_stop(
    moment: str,
    asked: int,
    stopped: int,
    end: int,
    asks_once: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = [*SHORT, f"callbacks=[{asks_once}]"]
    line += [f"callbacks.{asks_once}.moment={moment}", f"callbacks.{asks_once}.step={asked}"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*line, f"hydra.run.dir={whole}"]) == 0
    next_batch = TrainLoader.next_batch

    def interrupted(loader: TrainLoader) -> list[Batch]:
        if loader.batch == stopped - 1:
            signal.raise_signal(signal.SIGTERM)
        return next_batch(loader)

    with monkeypatch.context() as patch:
        patch.setattr(TrainLoader, "next_batch", interrupted)
        assert main([*line, f"hydra.run.dir={parts}"]) == 75
    assert main([*line, f"hydra.run.dir={parts}"]) == 0
    assert read_status(parts)["step"] == end
    assert compare(parts, whole) == []
    assert main([*line, "loop.max_steps=8", f"hydra.run.dir={parts}"]) == 0
    assert read_status(parts)["step"] == 8  # nobody has asked for the end of the larger budget


@pytest.mark.parametrize("fails", ["too many bad steps", "an error"])
def test_a_run_that_fails_in_a_step_has_written_its_last_checkpoint(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, forward_backward = writing.write, TrainStep._forward_backward

    def slowly(*arguments: Any) -> Path:
        time.sleep(0.5)
        return write(*arguments)

    def fail(self: TrainStep, batches: list[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
        if self.parts.counters.step == 1 and fails == "an error":
            raise RuntimeError("out of luck")
        factor = math.nan if self.parts.counters.step == 1 else 1
        return forward_backward(self, [(inputs * factor, targets) for inputs, targets in batches])

    monkeypatch.setattr(writing, "write", slowly)
    monkeypatch.setattr(TrainStep, "_forward_backward", fail)
    line = [*SHORT, "checkpoint.async=true", "checkpoint.every_steps=1", "loop.max_bad_steps=1"]
    run = tmp_path / "run"
    assert main([*line, f"hydra.run.dir={run}"]) == 1
    assert [c.name for c in storage.list_checkpoints(run / "checkpoints")] == ["step_00000001"]
    assert (read_status(run)["state"], read_status(run)["saved"]) == ("failed", 1)
