"""Objectives against their formulas, sample by sample; totals of batches against those of all samples at once."""

import math

import pytest
import torch
from torch import Tensor

from trainer.metrics import metric_of
from trainer.objectives import Objective
from trainer.objectives.cross_entropy import CrossEntropy
from trainer.objectives.distillation import Distillation
from trainer.objectives.elementwise import BinaryCrossEntropy, MeanSquaredError
from trainer.objectives.next_token import NextToken
from trainer.objectives.summed_metric import SummedMetric

OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": CrossEntropy(),
    "next_token": NextToken(),
    "mse of inputs": MeanSquaredError(against="inputs"),
    "mse of classes": MeanSquaredError(),
    "bce of classes": BinaryCrossEntropy(),
    "bce of labels": BinaryCrossEntropy(),
}


def of_batch(objective: Objective, outputs: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and totals of a model that gives these outputs."""
    return objective.loss(lambda seen: outputs if seen is inputs else None, (inputs, targets))


def smoothed(logits: Tensor, target: Tensor, smoothing: float) -> float:
    """The cross-entropy of logits [K] against a class whose probability is partly spread over all classes."""
    probabilities = [math.exp(value) for value in logits.tolist()]
    logs = [math.log(p / sum(probabilities)) for p in probabilities]
    return -(1 - smoothing) * logs[int(target)] - smoothing * sum(logs) / len(logs)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_classification(smoothing: float) -> None:
    outputs, targets = torch.randn(7, 4, dtype=torch.float64), torch.randint(4, (7,))
    objective = CrossEntropy(label_smoothing=smoothing)
    loss, totals = of_batch(objective, outputs, torch.empty(7, 2), targets)
    losses = [smoothed(row, target, smoothing) for row, target in zip(outputs, targets, strict=True)]
    right = sum(int(row.argmax() == target) for row, target in zip(outputs, targets, strict=True))
    assert loss.item() == pytest.approx(sum(losses) / 7)
    assert totals.tolist() == pytest.approx([sum(losses), right, 7])
    metrics = objective.metrics(totals)
    assert metrics == pytest.approx({"loss": sum(losses) / 7, "accuracy": right / 7})


def test_top5_accuracy_of_more_than_five_classes() -> None:
    outputs, targets = torch.randn(40, 9), torch.randint(9, (40,))
    ranks = [int((row > row[target]).sum()) for row, target in zip(outputs, targets, strict=True)]
    _, totals = of_batch(CrossEntropy(), outputs, torch.empty(40, 2), targets)
    metrics = CrossEntropy().metrics(totals)
    assert metrics["accuracy"] == pytest.approx(ranks.count(0) / 40)
    assert metrics["top5_accuracy"] == pytest.approx(sum(rank < 5 for rank in ranks) / 40)
    assert metric_of("test/top5_accuracy").text(0.9722) == "97.22%"
    assert metric_of("test/top5_accuracy").higher_is_better


def test_language() -> None:
    outputs, targets = torch.randn(3, 5, 4, dtype=torch.float64), torch.randint(4, (3, 5))
    loss, totals = of_batch(NextToken(label_smoothing=0.1), outputs, targets, targets)
    pairs = zip(outputs.flatten(0, 1), targets.flatten(), strict=True)
    mean = sum(smoothed(row, target, 0.1) for row, target in pairs) / 15
    assert loss.item() == pytest.approx(mean)
    assert NextToken().metrics(totals) == pytest.approx({"loss": mean, "perplexity": math.exp(mean)})


def test_a_hopeless_language_model_has_a_finite_perplexity() -> None:
    metrics = NextToken().metrics(torch.tensor([1e6, 2.0]))
    assert metrics["loss"] == 5e5
    assert math.isfinite(metrics["perplexity"])


def test_reconstruction() -> None:
    outputs, inputs = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(3, 2, 4, dtype=torch.float64)
    objective = MeanSquaredError(against="inputs")
    loss, totals = of_batch(objective, outputs, inputs, torch.zeros(3))
    mean = (
        sum((a - b) ** 2 for a, b in zip(outputs.flatten().tolist(), inputs.flatten().tolist(), strict=True))
        / 24
    )
    assert loss.item() == pytest.approx(mean)
    assert objective.metrics(totals) == pytest.approx({"loss": mean})


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_bce(kind: str) -> None:
    outputs = torch.randn(6, 3, dtype=torch.float64)
    targets = torch.randint(3, (6,)) if kind == "classes" else torch.randint(2, (6, 3)).double()
    loss, totals = of_batch(BinaryCrossEntropy(), outputs, torch.empty(6, 2), targets)
    losses, right = [], []
    for row, target in zip(outputs.tolist(), targets.tolist(), strict=True):
        labels = [float(k == target) for k in range(3)] if kind == "classes" else target
        probabilities = [1 / (1 + math.exp(-value)) for value in row]
        pairs = list(zip(probabilities, labels, strict=True))
        losses += [-math.log(p if label else 1 - p) for p, label in pairs]
        right += (
            [row.index(max(row)) == target] * 3 if kind == "classes" else [(p > 0.5) == y for p, y in pairs]
        )
    assert loss.item() == pytest.approx(sum(losses) / 18)
    assert BinaryCrossEntropy().metrics(totals) == pytest.approx(
        {"loss": sum(losses) / 18, "accuracy": sum(right) / 18}
    )


def test_classes_as_one_hot_vectors() -> None:
    outputs, targets = torch.randn(4, 3), torch.tensor([2, 0, 1, 1])
    loss, _ = of_batch(MeanSquaredError(), outputs, torch.empty(4, 2), targets)
    assert loss.item() == pytest.approx((outputs - torch.eye(3)[targets]).square().mean().item())


@pytest.mark.parametrize("shape", [(5, 3), (5, 4, 3)])
def test_distillation(shape: tuple[int, ...]) -> None:
    outputs, taught = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    targets, T, weight = torch.randint(3, shape[:-1]), 3.0, 0.3
    base = "cross_entropy" if len(shape) == 2 else "next_token"
    objective = Distillation(teacher="run", temperature=T, weight=weight, base=base)  # type: ignore[arg-type]
    objective.attach(lambda path: torch.nn.Flatten(0, 0) if path == "run" else None)  # type: ignore
    objective.teacher.forward = lambda inputs: taught
    loss, totals = of_batch(objective, outputs, torch.empty(5, 2), targets)
    rows = list(zip(outputs.flatten(0, -2), taught.flatten(0, -2), targets.flatten(), strict=True))
    soft = [
        ((t / T).softmax(-1) * ((t / T).softmax(-1) / (s / T).softmax(-1)).log()).sum() for s, t, _ in rows
    ]
    hard = [smoothed(row, target, 0.0) for row, _, target in rows]
    mean = ((1 - weight) * sum(hard) + weight * T**2 * float(sum(soft))) / len(rows)
    assert loss.item() == pytest.approx(mean)
    assert objective.metrics(totals)["loss"] == pytest.approx(mean)
    evaluated = objective.for_evaluation()
    assert evaluated.primary == objective.primary
    assert of_batch(evaluated, outputs, torch.empty(5, 2), targets)[0].item() == pytest.approx(
        sum(hard) / len(rows)
    )


def test_a_metric_of_torchmetrics_adds_up_over_uneven_batches() -> None:
    classification = pytest.importorskip("torchmetrics.classification")
    outputs, targets = torch.randn(10, 4), torch.randint(4, (10,))
    for make in (
        lambda: classification.MulticlassF1Score(4, average="macro"),
        lambda: classification.MulticlassAUROC(4, thresholds=20),
    ):
        metric = SummedMetric(make())
        parts = [metric.totals(outputs[part], targets[part]) for part in (slice(3), slice(3, 10))]
        assert parts[0].shape == (metric.size,)
        assert metric.value(torch.stack(parts).double().sum(0)) == pytest.approx(
            make()(outputs, targets).item()
        )
    with pytest.raises(
        ValueError, match="BinaryAUROC does not add up: its state preds is no sum over samples"
    ):
        SummedMetric(classification.BinaryAUROC())


def batches_for(objective: str) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Outputs, inputs and targets of two batches of different sizes."""
    if objective == "next_token":
        return [(torch.randn(n, 3, 4), torch.randint(4, (n, 3)), torch.randint(4, (n, 3))) for n in (5, 2)]
    if objective == "mse of inputs":
        return [(torch.randn(n, 3), torch.randn(n, 3), torch.zeros(n)) for n in (5, 2)]
    if objective == "bce of labels":
        return [(torch.randn(n, 3), torch.randn(n, 3), torch.randint(2, (n, 3))) for n in (5, 2)]
    return [(torch.randn(n, 7), torch.randn(n, 2), torch.randint(7, (n,))) for n in (5, 2)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_totals_of_batches_add_up(name: str) -> None:
    """A mean of the batches' means would give the smaller batch too much weight."""
    objective, batches = OBJECTIVES[name], batches_for(name)
    added = sum(of_batch(objective, *batch)[1] for batch in batches)
    assert isinstance(added, Tensor)
    outputs, inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    _, at_once = of_batch(objective, outputs, inputs, targets)
    assert objective.metrics(added) == pytest.approx(objective.metrics(at_once), rel=1e-5)
    assert objective.primary in objective.metrics(added)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_half_precision_is_added_up_in_float32(name: str) -> None:
    objective, (outputs, inputs, targets) = OBJECTIVES[name], batches_for(name)[0]
    loss, totals = of_batch(objective, outputs.bfloat16(), inputs, targets)
    assert loss.dtype == totals.dtype == torch.float32
    wide, _ = of_batch(objective, outputs.bfloat16().float(), inputs, targets)
    assert loss.item() == pytest.approx(wide.item())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_the_loss_has_a_gradient(name: str) -> None:
    outputs, inputs, targets = batches_for(name)[0]
    loss, totals = of_batch(OBJECTIVES[name], outputs.requires_grad_(), inputs, targets)
    assert loss.requires_grad
    assert not totals.requires_grad


def test_shares_of_classes_are_targets_too() -> None:
    logits, classes = torch.randn(6, 7), torch.tensor([0, 1, 2, 3, 4, 6])
    one_hot = torch.nn.functional.one_hot(classes, 7).float()
    for smoothing in (0.0, 0.1):
        objective = CrossEntropy(label_smoothing=smoothing)
        hard, soft = (of_batch(objective, logits, logits, targets) for targets in (classes, one_hot))
        for a, b in zip(hard, soft, strict=True):
            torch.testing.assert_close(a, b)
    shares = 0.7 * one_hot + 0.3 * one_hot.flip(0)
    loss, totals = of_batch(CrossEntropy(), logits, logits, shares)
    torch.testing.assert_close(loss, -(shares * logits.log_softmax(1)).sum(1).mean())
    assert totals[1] == (logits.argmax(1) == classes).sum()
    of_batch(CrossEntropy(), logits.double(), logits, shares)


@pytest.mark.parametrize(
    "objective", [CrossEntropy(label_smoothing=0.1), MeanSquaredError(), BinaryCrossEntropy()]
)
def test_outputs_beyond_the_classes_have_no_share(objective: Objective) -> None:
    outputs, shares = torch.randn(6, 7), torch.rand(6, 4).softmax(1)
    padded = torch.cat([shares, torch.zeros(6, 3)], 1)
    found, expected = (of_batch(objective, outputs, outputs, targets) for targets in (shares, padded))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match=r"outputs \[6, 7\] do not fit targets \[6, 4\]"):  # of a regression
        of_batch(MeanSquaredError(), outputs, outputs, torch.rand(6, 4))
