"""A loss whose logits exist in pieces: the same training as with all at once, never more than a piece at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.ranks import on_ranks
from tests.distributed.runs import assert_same, outcome, parts_of, steps
from tests.training import helpers
from trainer.cli.train import main
from trainer.distributed.ranks import Ranks
from trainer.models import pieces
from trainer.training.step import TrainStep

GPT = (
    "data=synthetic_tokens data.train_samples=48 data.val_samples=10 data.context_length=10 data.batch_size=12 "
    "data.vocab_size=30 model=gpt model.layers=2 model.width=16 model.heads=2 loop.accumulate=2 device=cpu "
    "loop.label_smoothing=0.1"
)
OPTIMIZERS = {
    "adafisher": "optimizer=adafisher optimizer.update_interval=1",
    "paper, untied": "optimizer=adafisher optimizer.rule=paper optimizer.update_interval=1 model.tied=false",
    "adamw, recomputed": "optimizer=adamw loop.activation_checkpointing=full",
}


def trained(line: str) -> dict[str, Any]:
    torch.set_default_dtype(torch.float64)
    try:
        return outcome(steps(helpers.parts_of(*line.split()), 3))
    finally:
        torch.set_default_dtype(torch.float32)


def trained_on_ranks(ranks: Ranks, line: str) -> dict[str, Any]:
    return outcome(steps(parts_of(ranks, *line.split()), 3))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("chunks", [3, 1000, "auto"])
def test_training_is_the_same(optimizer: str, chunks: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters, AdaFisher's factors, metrics, the gradient's norm."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 4 * 12 * 10 * 30 // 5)
    line = f"{GPT} {OPTIMIZERS[optimizer]}"
    expected = trained(line)
    assert_same(expected, trained(f"{line} loop.loss_chunks={chunks}"))


@pytest.mark.ranks
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_training_is_the_same_on_ranks(parallel: str) -> None:
    line = f"{GPT} {OPTIMIZERS['adafisher']}"
    expected = trained(line)
    for one in on_ranks(2, trained_on_ranks, f"{line} loop.loss_chunks=3 parallel={parallel}"):
        assert_same(expected, one)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the most values that any new tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.values = max(self.values, result.numel())
        return result


@pytest.mark.parametrize(("chunks", "tokens"), [(1, 10), (5, 2), (10, 1)])
def test_no_tensor_is_larger_than_the_logits_of_a_piece(chunks: int, tokens: int) -> None:
    """Forward and backward, with a vocabulary that outweighs all else."""
    line = f"{GPT} loop.accumulate=1 data.vocab_size=999 optimizer=sgd loop.loss_chunks={chunks}"
    parts = helpers.parts_of(*line.split())
    with Largest() as largest:
        TrainStep(parts)()
    assert largest.values == max(12 * tokens * 999, 16 * 999)


def test_a_model_that_makes_all_outputs_at_once(refused: Callable[[int, str], None]) -> None:
    refused(
        main(["loop.loss_chunks=2"]),
        "loop.loss_chunks=2 does not work with model=cnn, which makes all its outputs",
    )
