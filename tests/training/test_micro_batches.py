"""``loop.accumulate=auto``: the fewest micro-batches within a limit, kept in the run's config, with no other trace."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.distributed.ranks import on_ranks
from tests.distributed.ranks import train as train_on
from tests.training.kill_and_resume import compare
from trainer.cli.train import main
from trainer.distributed.ranks import Ranks
from trainer.training import micro_batches
from trainer.training.micro_batches import Peak, largest_fitting

SIZES = [1, 2, 3, 4, 6, 12]


@pytest.mark.parametrize(
    ("limit", "fitting", "tried"),
    [
        (100, None, [1]),
        (120, 1, [1]),
        (145, 2, [1, 2]),
        (165, 3, [1, 2, 3]),
        (10_000, 12, SIZES),
    ],
)
def test_no_size_is_tried_that_would_not_fit(limit: int, fitting: int | None, tried: list[int]) -> None:
    """Of 100 bytes and 20 a sample."""
    seen = []

    def measure(size: int) -> Peak:
        seen.append(size)
        return Peak(100, 100 + 20 * size)

    assert largest_fitting(SIZES, measure, limit) == fitting
    assert seen == tried


def test_gradients_do_not_count_as_a_samples() -> None:
    """They make the first prediction too high, not those that follow."""
    measure = {1: Peak(100, 180), 2: Peak(100, 190), 3: Peak(100, 200), 4: Peak(100, 210)}
    assert largest_fitting([1, 2, 3, 4], measure.__getitem__, 255) is not None
    assert largest_fitting([1, 2, 3, 4], measure.__getitem__, 262) == 4


def simulate(patch: Any, limit: int) -> list[int]:
    """A GPU whose memory is 100 bytes for the model and 20 for each sample of the steps that are really taken."""
    taken: list[int] = []
    forward_backward = micro_batches.TrainStep._forward_backward

    def watch(self: micro_batches.TrainStep, batches: list[Any]) -> Any:
        taken.append(len(batches[0][0]))
        return forward_backward(self, batches)

    patch.setattr(micro_batches.TrainStep, "_forward_backward", watch)
    patch.setattr(micro_batches, "usable_memory", lambda device: limit)
    patch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    patch.setattr(torch.cuda, "max_memory_reserved", lambda device: 100 + 20 * taken[-1])
    patch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    return taken


RUN = [
    "model=mlp",
    "data.batch_size=12",
    "data.crop_padding=0",
    "loop.max_steps=4",
    "loop.log_every=1",
    "device=cpu",
]


def train(run: Path, *overrides: str) -> int:
    return main([*RUN, *overrides, f"hydra.run.dir={run}"])


def frozen(run: Path) -> Any:
    return yaml.safe_load((run / "config.yaml").read_text())["loop"]["accumulate"]


def test_it_is_kept_in_the_config_and_leaves_no_other_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        taken = simulate(patch, limit=190)
        assert train(tmp_path / "auto", "loop.accumulate=auto", "loop.max_steps=2") == 0
        assert frozen(tmp_path / "auto") == 3
        assert taken == [1, 1, 2, 2, 3, 3, 4, 4] + [4] * 2
    # the number is not looked for again, though 6 would fit now
    with monkeypatch.context() as patch:
        assert simulate(patch, limit=250) is not None
        again = ["--config-path", str(tmp_path / "auto"), "--config-name", "config", "loop.max_steps=4"]
        assert main(again) == 0
        assert frozen(tmp_path / "auto") == 3
    assert train(tmp_path / "typed", "loop.accumulate=3", "loop.max_steps=2") == 0
    assert (
        main(["--config-path", str(tmp_path / "typed"), "--config-name", "config", "loop.max_steps=4"]) == 0
    )
    assert compare(tmp_path / "auto", tmp_path / "typed") == []


def test_a_run_goes_on_with_another_number(tmp_path: Path) -> None:
    assert train(tmp_path / "run", "loop.accumulate=4") == 0
    assert train(tmp_path / "run", "loop.accumulate=2", "loop.max_steps=6") == 0
    assert frozen(tmp_path / "run") == 2


@pytest.mark.ranks
def test_a_number_that_does_not_fit_the_ranks_is_told_with_one_that_does(tmp_path: Path) -> None:
    """Whether it is typed or kept."""
    run = tmp_path / "run"
    assert train(run, "loop.accumulate=4") == 0
    both = [*RUN, "parallel=ddp", f"hydra.run.dir={run}", "loop.max_steps=6"]
    for number in ("4", "auto"):
        assert train_on(2, [*both, f"loop.accumulate={number}"], tmp_path / "out") == [2, 2]
        said = (tmp_path / "out0").read_text()
        assert "does not divide into 2 ranks x 4 micro-batches" in said
        assert said.endswith("or loop.accumulate=2\n")
    assert train_on(2, [*both, "loop.accumulate=2"]) == [0, 0]
    assert frozen(run) == 2


def test_a_cpu_has_no_limit_and_one_sample_may_be_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "cpu", "loop.accumulate=auto") == 0
    assert frozen(tmp_path / "cpu") == 1
    capsys.readouterr()
    simulate(monkeypatch, limit=110)
    refused(
        train(tmp_path / "small", "loop.accumulate=auto"), "not even one sample a rank fits into 0 KiB: try"
    )
    assert not (tmp_path / "small").exists()


def settled_on_rank(ranks: Ranks, limits: list[int]) -> int | str:
    from tests.distributed.runs import ARGS
    from trainer.config.compose import compose, hydra_session, resolve

    with hydra_session(ARGS) as session:
        config = resolve(compose(session, ARGS, [*RUN, "loop.accumulate=auto", "parallel=ddp"]))
    with pytest.MonkeyPatch.context() as patch:
        simulate(patch, limits[ranks.rank])
        return micro_batches.settle_accumulate(config, None, ranks).loop.accumulate


@pytest.mark.ranks
def test_ranks_agree_on_the_smallest_gpu() -> None:
    assert on_ranks(2, settled_on_rank, [10_000, 165]) == [2, 2]
