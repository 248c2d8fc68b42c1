"""L-BFGS in the trainer against torch's own, step by step, and what it refuses."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.distributed.runs import parts_of as parts_on
from tests.training.helpers import MLP, parts_of
from trainer.distributed.ranks import SINGLE_PROCESS
from trainer.errors import ConfigError
from trainer.optim.torch_optimizers import LBFGS
from trainer.training.step import TrainStep

LINE = [*MLP, "optimizer=lbfgs", "model.widths=[6]", "device=cpu"]


def test_minimises_a_quadratic_like_newtons_method() -> None:
    """Of as many dimensions as it remembers, in one step of enough iterations."""
    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64)
    matrix, slope = root @ root.T + torch.eye(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    point = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimizer = LBFGS([point], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = point @ matrix @ point / 2 - slope @ point
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(point.detach(), torch.linalg.solve(matrix, slope), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("search", ["strong_wolfe", None])
def test_steps_of_the_trainer_are_torchs(search: str | None) -> None:
    """With micro-batches, in float64: on other batches each step, the history goes on."""
    options = {"lr": 0.5, "max_iter": 3, "history_size": 4, "line_search_fn": search}
    given = [f"optimizer.{name}={'null' if value is None else value}" for name, value in options.items()]
    parts = parts_on(SINGLE_PROCESS, *LINE, *given, "loop.accumulate=2")
    model, loader = copy.deepcopy(parts.model), copy.deepcopy(parts.state.loader)
    theirs = torch.optim.LBFGS(model.parameters(), **options)
    train_step = TrainStep(parts)
    for _ in range(5):
        train_step()
        batches = loader.next_batch()

        def closure() -> torch.Tensor:
            theirs.zero_grad()
            losses = [nn.functional.cross_entropy(model(inputs), targets) / 2 for inputs, targets in batches]  # noqa: B023
            for loss in losses:
                loss.backward()
            return sum(losses, torch.zeros(()))

        theirs.step(closure)
        for ours, expected in zip(parts.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-10)


def test_every_evaluation_has_the_same_noise_and_statistics_count_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = ["data.batch_size=32", "model.widths=[4]", "model.dropout=0.5", "device=cpu"]
    seen: list[tuple[float, list[torch.Tensor | None]]] = []

    def step(self: LBFGS, closure: Callable[[], float]) -> None:
        for _ in range(3):
            seen.append((closure(), [p.grad for p in self.param_groups[0]["params"]]))

    monkeypatch.setattr(LBFGS, "step", step)
    ends = []
    for optimizer in ("lbfgs", "sgd optimizer.lr=0"):
        parts = parts_of(*line, *f"optimizer={optimizer}".split())
        TrainStep(parts)()
        ends.append((dict(parts.model.named_buffers()), torch.rand(3), parts.state.window))
    for loss, gradients in seen[1:]:
        assert loss == seen[0][0]
        torch.testing.assert_close(gradients, seen[0][1], rtol=0, atol=0)
    torch.testing.assert_close(*ends, rtol=0, atol=0)
    assert ends[0][0]


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("loop.clip_norm=1", "which clipping would change: use loop.clip_norm=null"),
        ("loop.channels_last=true", "which have no channels: use loop.channels_last=false"),
        (
            "optimizer.decay_norms_and_biases=false",
            "no weight decay: leave optimizer.decay_norms_and_biases=true",
        ),
    ],
)
def test_what_does_not_fit_is_refused(option: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^optimizer=lbfgs .*{reason}$"):
        parts_of(*LINE, option)
