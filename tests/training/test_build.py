"""From a config to the parts of a run, and the mistakes that show only then."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training.helpers import parts_of
from tests.training.kill_and_resume import content
from trainer.cli.train import main
from trainer.models import MODELS
from trainer.optim.protocols import CurvatureOptimizer, ReadsLossScale, differentiates_gradient
from trainer.training.step import TrainStep


@pytest.fixture
def ranking_model() -> Iterator[str]:
    """A model of a plugin whose objective nobody has registered."""

    @MODELS.register("ranking_model", objective="ranking")
    def ranking_model(*, num_classes: int | None = None) -> nn.Module:
        raise AssertionError("it is never built")

    yield "ranking_model"
    del MODELS._entries["ranking_model"]


def test_an_unknown_objective_is_one_line(ranking_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"model={ranking_model}", "plugins=[trainer]"]) == 2
    assert capsys.readouterr().err == (
        "error: model=ranking_model is registered with an unknown objective=ranking "
        "(known: bce, classification, cross_entropy, distillation, language, mse, next_token, reconstruction)\n"
    )


@pytest.fixture
def broken_model() -> Iterator[str]:
    """A model of a plugin that has a bug."""

    @MODELS.register("broken_model")
    def broken_model(*, num_classes: int | None = None) -> nn.Module:
        return nn.Linear(64, num_classes).no_such_method()

    yield "broken_model"
    del MODELS._entries["broken_model"]


def test_what_a_component_raises_is_one_line(
    broken_model: str,
    refused: Callable[[int, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = [f"model={broken_model}", "plugins=[trainer]", f"hydra.run.dir={tmp_path / 'run'}"]
    raised = "AttributeError: 'Linear' object has no attribute 'no_such_method'"
    refused(main(line), f"error: model={broken_model} cannot be built: {raised} ({__file__}:")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert main(line) == 2
    assert "return nn.Linear(64, num_classes).no_such_method()" in capsys.readouterr().err


def objective_of(*overrides: str) -> str:
    return repr(parts_of(*overrides).objective)


def test_the_objective_is_that_of_the_model_unless_another_is_chosen() -> None:
    smoothed = ["loop.label_smoothing=0.2"]
    assert objective_of("model=mlp", *smoothed) == "CrossEntropy(label_smoothing=0.2)"
    chosen = ["objective=cross_entropy", "objective.label_smoothing=0.1"]
    assert objective_of("model=mlp", *smoothed, *chosen) == "CrossEntropy(label_smoothing=0.1)"
    assert objective_of("model=autoencoder") == "MeanSquaredError(against='inputs')"
    assert objective_of("model=mlp", "objective=mse") == "MeanSquaredError(against='targets')"
    assert parts_of("model=mlp", "objective=bce").primary == "test/accuracy"
    tokens = ["data=synthetic_tokens", "model=gpt", "model.layers=1", "model.width=16", "model.heads=2"]
    assert objective_of(*tokens, "loop.loss_chunks=3") == "NextToken(label_smoothing=0.0, loss_chunks=3)"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (
            "model=autoencoder objective=mse",
            "objective=mse does not work with model=autoencoder and data=digits: ValueError: outputs [2, 1, 8, 8] "
            "do not fit targets [2]",
        ),
        (
            "objective=mse loop.label_smoothing=0.1",
            "loop.label_smoothing=0.1 does not work with objective=mse, which has none: leave it at 0",
        ),
        (
            "objective=next_token objective.loss_chunks=2",
            "objective.loss_chunks=2 does not work with model=cnn, which makes all its outputs at once: leave it at 1",
        ),
        (
            "objective=mse objective.against=nothing",
            "objective.against=nothing is wrong: it must be one of targets, inputs",
        ),
        ("objective=distillation", "objective.teacher is required: set objective.teacher=..."),
        (
            "objective=distillation objective.teacher=nowhere",
            "objective.teacher=nowhere does not exist: give a run directory or one of its checkpoints",
        ),
        (
            "data=synthetic_tokens",
            "model=cnn reads images, but data=synthetic_tokens gives tokens: choose another model or another data",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(line: str, error: str, refused: Callable[[int, str], None]) -> None:
    refused(main(line.split()), error)


def test_a_teacher_is_read_from_its_run(tmp_path: Path, refused: Callable[[int, str], None]) -> None:
    short = ["model.widths=[4,8]", "loop.max_steps=1", "data.batch_size=64", "monitor.sinks=[jsonl]"]
    assert main([*short, f"hydra.run.dir={tmp_path / 'teacher'}"]) == 0
    chosen = ["objective=distillation", f"objective.teacher={tmp_path / 'teacher'}"]
    parts = parts_of("model=mlp", *chosen)
    plain = parts_of("model=mlp")
    for one, other in zip(parts.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert parts.objective.logits_of == "classes"
    teacher = parts.objective.teacher  # type: ignore[attr-defined]
    saved = content(tmp_path / "teacher")["model"]
    assert all(torch.equal(value, saved[name]) for name, value in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())
    TrainStep(parts)()
    assert not teacher.training
    refused(
        main([*chosen, "data=synthetic_images"]),
        f"objective.teacher={tmp_path / 'teacher'}/checkpoints/step_00000001",
    )


def test_a_run_of_adafisher_offers_its_curvature() -> None:
    parts = parts_of("optimizer=adafisher", "precision=fp16")
    assert isinstance(parts.optimizer, CurvatureOptimizer)
    assert isinstance(parts.optimizer, ReadsLossScale)
    assert parts.optimizer.grad_scaler is parts.precision.scaler
    assert not differentiates_gradient(parts.optimizer)
    assert parts.primary == "test/accuracy"


def test_other_optimizers_offer_none() -> None:
    optimizer = parts_of("optimizer=adamw").optimizer
    assert not isinstance(optimizer, CurvatureOptimizer)
    assert not isinstance(optimizer, ReadsLossScale)
    assert not differentiates_gradient(optimizer)


def test_some_optimizers_differentiate_the_gradient() -> None:
    pytest.importorskip("pytorch_optimizer")
    line = ["optimizer=pytorch_optimizer", "optimizer.lr=0.1"]
    assert differentiates_gradient(parts_of(*line, "optimizer.algorithm=adahessian").optimizer)
    assert not differentiates_gradient(parts_of(*line, "optimizer.algorithm=lion").optimizer)


SOPHIA = "optimizer=pytorch_optimizer optimizer.algorithm=sophiah"


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("optimizer=adahessian loop.compile=true", "use loop.compile=false"),
        ("optimizer=adahessian precision=fp16", "use precision=bf16"),
        (f"{SOPHIA} precision=fp16", "use precision=bf16"),
    ],
)
def test_what_a_second_derivative_does_not_go_with_is_one_line(
    line: str, remedy: str, refused: Callable[[int, str], None], tmp_path: Path
) -> None:
    if line.startswith(SOPHIA):
        pytest.importorskip("pytorch_optimizer")
    refused(main([*line.split(), f"hydra.run.dir={tmp_path / 'run'}"]), remedy)
