"""The loop from its first step to its end: budgets, patience, failures, and that runs learn."""

import itertools
import json
import os
import signal
from pathlib import Path

import pytest
import torch

from tests.training.helpers import poison, trainer_of
from trainer.cli.train import main
from trainer.training.nonfinite import TrainingFailed
from trainer.training.step import StepOutcome, TrainStep


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
