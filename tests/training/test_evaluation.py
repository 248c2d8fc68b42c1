"""Metrics of a split against those of the whole split at once; evaluations that end early or give no number."""

import itertools
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.helpers import parts_of
from tests.training.kill_and_resume import compare
from trainer.checkpoint.storage import best
from trainer.cli.train import main
from trainer.data import Batch, eval_batches
from trainer.rundir.status import read_status
from trainer.training import evaluation
from trainer.training.evaluation import evaluate


def test_evaluation_counts_every_sample_once() -> None:
    parts = parts_of("data.eval_batch_size=7", "loop.label_smoothing=0.5")
    metrics = evaluate(parts)
    inputs, targets = parts.data.evals["test"].batch(torch.arange(360), None)
    parts.model.eval()
    logits = parts.model(inputs)
    loss = nn.functional.cross_entropy(logits, targets).item()
    assert metrics["test/accuracy"] == (logits.argmax(1) == targets).sum().item() / 360
    assert metrics["test/loss"] == pytest.approx(loss, rel=1e-5)


TINY = ["model.widths=[4]", "data.batch_size=64", "data.eval_batch_size=40", "monitor.sinks=[console,jsonl]"]
RUN = [*TINY, "loop.max_steps=22", "loop.eval_every=5", "checkpoint.every_steps=10", "loop.ema=0.9"]
BATCHES = 9


def at_batches(monkeypatch: pytest.MonkeyPatch, change: Callable[[int, Tensor], Tensor]) -> None:
    """Gives the inputs of evaluation batch 0, 1, ... (of the whole run) to a function, which may change them."""
    numbers = itertools.count()

    def batches(*args: Any) -> Iterator[Batch]:
        for inputs, targets in eval_batches(*args):
            yield change(next(numbers), inputs), targets

    monkeypatch.setattr(evaluation, "eval_batches", batches)


@pytest.mark.parametrize("batch", [2 * BATCHES + 3, 3 * BATCHES + 1, 9 * BATCHES + 4])
def test_a_signal_ends_it_and_it_is_made_up(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a checkpoint was due, while the average is evaluated, and at the end."""
    assert main([*RUN, f"hydra.run.dir={tmp_path / 'undisturbed'}"]) == 0
    seen = []

    def stop(number: int, inputs: Tensor) -> Tensor:
        seen.append(number)
        if number == batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return inputs

    line = [*RUN, f"hydra.run.dir={tmp_path / 'run'}"]
    at_batches(monkeypatch, stop)
    assert main(line) == 75
    assert seen[-1] == batch
    step = min(22, 5 * (batch // (2 * BATCHES) + 1))
    assert (tmp_path / "run" / "checkpoints" / f"step_{step:08d}").exists()
    status = read_status(tmp_path / "run")
    assert (status["state"], status["error"]) == ("preempted", f"stopped by SIGTERM at step {step}")
    monkeypatch.undo()
    assert main(line) == 0
    assert compare(tmp_path / "run", tmp_path / "undisturbed") == []


@pytest.mark.parametrize("last", [False, True])
def test_what_is_not_a_number_is_never_the_best(
    last: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """argmax finds a class, and so an accuracy, in logits that are nan."""

    def spoil(number: int, inputs: Tensor) -> Tensor:
        return inputs * math.nan if last or number < BATCHES else inputs

    at_batches(monkeypatch, spoil)
    run = tmp_path / "run"
    assert main([*TINY, "loop.max_steps=10", "loop.eval_every=5", f"hydra.run.dir={run}"]) == 0
    missing = "test/loss, test/accuracy, test/top5_accuracy"
    said = f"warning: the evaluation at step 5 gave no number for {missing}: it does not count as best"
    assert said in capsys.readouterr().out
    [first, second] = [record for record in records(run) if record["kind"] == "evaluation"]
    assert first["test/accuracy"] is None
    assert (second["test/accuracy"] is None) == last
    status = read_status(run)
    assert status["error"] == ("test/accuracy at the end is not a number" if last else None)
    assert best(run / "checkpoints") == (None if last else "step_00000010")


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
