"""Metrics of a split against those of the whole split at once."""

import pytest
import torch
from torch import nn

from tests.training.helpers import parts_of
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
