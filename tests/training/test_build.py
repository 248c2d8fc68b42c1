"""From a config to the parts of a run, and the mistakes that show only then."""

from collections.abc import Iterator

import pytest
from torch import nn

from tests.training.helpers import parts_of
from trainer.cli.train import main
from trainer.models import MODELS
from trainer.optim.protocols import CurvatureOptimizer, ReadsLossScale, differentiates_gradient


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
        "(known: classification, language, reconstruction)\n"
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
