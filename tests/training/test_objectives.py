"""Objectives against their formulas, sample by sample; totals of batches against those of all samples at once."""

import math

import pytest
import torch
from torch import Tensor

from trainer.metrics import metric_of
from trainer.training.objectives import OBJECTIVES, Objective


def smoothed(logits: Tensor, target: Tensor, smoothing: float) -> float:
    """The cross-entropy of logits [K] against a class whose probability is partly spread over all classes."""
    probabilities = [math.exp(value) for value in logits.tolist()]
    logs = [math.log(p / sum(probabilities)) for p in probabilities]
    return -(1 - smoothing) * logs[int(target)] - smoothing * sum(logs) / len(logs)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_classification(smoothing: float) -> None:
    outputs, targets = torch.randn(7, 4, dtype=torch.float64), torch.randint(4, (7,))
    loss, totals = OBJECTIVES["classification"](smoothing)(outputs, torch.empty(7, 2), targets)
    losses = [smoothed(row, target, smoothing) for row, target in zip(outputs, targets, strict=True)]
    right = sum(int(row.argmax() == target) for row, target in zip(outputs, targets, strict=True))
    assert loss.item() == pytest.approx(sum(losses) / 7)
    assert totals.tolist() == pytest.approx([sum(losses), right, 7])
    metrics = OBJECTIVES["classification"](smoothing).metrics(totals)
    assert metrics == pytest.approx({"loss": sum(losses) / 7, "accuracy": right / 7})


def test_top5_accuracy_of_more_than_five_classes() -> None:
    outputs, targets = torch.randn(40, 9), torch.randint(9, (40,))
    ranks = [int((row > row[target]).sum()) for row, target in zip(outputs, targets, strict=True)]
    _, totals = OBJECTIVES["classification"]()(outputs, torch.empty(40, 2), targets)
    metrics = OBJECTIVES["classification"]().metrics(totals)
    assert metrics["accuracy"] == pytest.approx(ranks.count(0) / 40)
    assert metrics["top5_accuracy"] == pytest.approx(sum(rank < 5 for rank in ranks) / 40)
    assert metric_of("test/top5_accuracy").text(0.9722) == "97.22%"
    assert metric_of("test/top5_accuracy").higher_is_better


def test_language() -> None:
    outputs, targets = torch.randn(3, 5, 4, dtype=torch.float64), torch.randint(4, (3, 5))
    loss, totals = OBJECTIVES["language"](0.1)(outputs, targets, targets)
    pairs = zip(outputs.flatten(0, 1), targets.flatten(), strict=True)
    mean = sum(smoothed(row, target, 0.1) for row, target in pairs) / 15
    assert loss.item() == pytest.approx(mean)
    assert OBJECTIVES["language"]().metrics(totals) == pytest.approx(
        {"loss": mean, "perplexity": math.exp(mean)}
    )


def test_a_hopeless_language_model_has_a_finite_perplexity() -> None:
    metrics = OBJECTIVES["language"]().metrics(torch.tensor([1e6, 2.0]))
    assert metrics["loss"] == 5e5
    assert math.isfinite(metrics["perplexity"])


def test_reconstruction() -> None:
    outputs, inputs = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    loss, totals = OBJECTIVES["reconstruction"]()(outputs, inputs, torch.zeros(3))
    mean = (
        sum((a - b) ** 2 for a, b in zip(outputs.flatten().tolist(), inputs.flatten().tolist(), strict=True))
        / 24
    )
    assert loss.item() == pytest.approx(mean)
    assert OBJECTIVES["reconstruction"]().metrics(totals) == pytest.approx({"loss": mean})


def batches_for(objective: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Outputs, inputs and targets of two batches of different sizes."""
    if objective == "classification":
        return [(torch.randn(n, 7), torch.randn(n, 2), torch.randint(7, (n,))) for n in (5, 2)]
    if objective == "language":
        return [(torch.randn(n, 3, 4), torch.randint(4, (n, 3)), torch.randint(4, (n, 3))) for n in (5, 2)]
    return [(torch.randn(n, 3), torch.randn(n, 3), torch.zeros(n)) for n in (5, 2)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_totals_of_batches_add_up(name: str) -> None:
    """A mean of the batches' means would give the smaller batch too much weight."""
    objective: Objective = OBJECTIVES[name]()
    batches = batches_for(name)
    added = sum(objective(*batch)[1] for batch in batches)
    _, at_once = objective(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    assert objective.metrics(added) == pytest.approx(objective.metrics(at_once), rel=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_half_precision_is_added_up_in_float32(name: str) -> None:
    objective: Objective = OBJECTIVES[name]()
    outputs, inputs, targets = batches_for(name)[0]
    loss, totals = objective(outputs.bfloat16(), inputs, targets)
    assert loss.dtype == totals.dtype == torch.float32
    assert loss.item() == pytest.approx(objective(outputs.bfloat16().float(), inputs, targets)[0].item())


def test_only_the_loss_has_a_gradient() -> None:
    outputs = torch.randn(7, 4, requires_grad=True)
    loss, totals = OBJECTIVES["classification"]()(outputs, torch.empty(7, 2), torch.randint(4, (7,)))
    assert loss.requires_grad
    assert not totals.requires_grad


def test_shares_of_classes_are_targets_too():
    logits = torch.randn(6, 7)
    classes = torch.tensor([0, 1, 2, 3, 4, 6])
    for smoothing in (0.0, 0.1):
        hard, soft = (
            OBJECTIVES["classification"](smoothing)(logits, logits, targets)
            for targets in (classes, torch.nn.functional.one_hot(classes, 7).float())
        )
        for a, b in zip(hard, soft, strict=True):
            torch.testing.assert_close(a, b)
    shares = 0.7 * torch.nn.functional.one_hot(classes, 7) + 0.3 * torch.nn.functional.one_hot(
        classes.flip(0), 7
    )
    loss, totals = OBJECTIVES["classification"]()(logits, logits, shares)
    expected = -(shares * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, expected)
    assert totals[1] == (logits.argmax(1) == classes).sum()
    OBJECTIVES["classification"]()(logits.double(), logits, shares)
