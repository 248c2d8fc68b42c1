"""The plugin that docs/extending.md prints: trained, stopped and resumed to the bit, on one rank and on two."""

import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.ranks import end, environments
from tests.forks import FORKS
from tests.training.kill_and_resume import compare, content
from trainer.cli.train import main
from trainer.data import Batch
from trainer.training.step import TrainStep

PAGE = Path(__file__).parents[2] / "docs/extending.md"
LINE = [
    *["plugins=[ranking]", "data=triplets", "model=embedding", "schedule=inverse_sqrt", "callbacks=[calm]"],
    *["data.batch_size=40", "loop.max_steps=24", "loop.log_every=3", "loop.eval_every=8", "device=cpu"],
    *["monitor.sinks=[console,jsonl,csv]", "optimizer.update_interval=5"],
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module of the page."""
    folder = tmp_path_factory.mktemp("site")
    [source] = re.findall(r"^```python\n(# ranking.py\n.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (folder / "ranking.py").write_text(source)
    return folder


def train(site: Path, world_size: int, *lines: list[str], stop_at: int | None = None) -> list[list[int]]:
    """The exit codes of command lines, one after the other in processes that find the module, by rank.

    What they say goes to ``said0`` and so on in the folder.

    Args:
        site: the folder.
        world_size: the number of processes.
        lines: the command lines.
        stop_at: the number of a step, counted over all lines from 1, in which the last rank gets a signal.
    """
    processes = []
    for rank, environ in enumerate(environments(world_size)):
        at = stop_at if rank == world_size - 1 else None
        processes.append(FORKS.Process(target=_train, args=(environ, site, lines, at, rank)))
    for process in processes:
        process.start()
    assert end(processes) == [0] * world_size, (site / "said0").read_text()
    return [json.loads((site / f"codes{rank}").read_text()) for rank in range(world_size)]


def _train(
    environ: dict[str, str], site: Path, lines: Sequence[list[str]], stop_at: int | None, rank: int
) -> None:
    torch.set_num_threads(1)
    os.environ |= environ
    sys.path.insert(0, str(site))
    with open(site / f"said{rank}", "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if stop_at is not None:
        send_signal(stop_at)
    (site / f"codes{rank}").write_text(json.dumps([main(line) for line in lines]))


def send_signal(step: int) -> None:
    """Raises SIGTERM in this process in its step of that number, from 1."""
    forward_backward, seen = TrainStep._forward_backward, []

    def interrupted(train_step: TrainStep, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        seen.append(len(batches))
        if len(seen) == step:
            signal.raise_signal(signal.SIGTERM)
        return forward_backward(train_step, batches)

    TrainStep._forward_backward = interrupted  # type: ignore[method-assign]


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def numbers(record: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, float)}


@pytest.mark.ranks
def test_stopped_and_resumed_to_the_bit_and_the_same_on_two_ranks(site: Path, tmp_path: Path) -> None:
    whole, parts, shared = (tmp_path / name for name in ("whole", "parts", "shared"))
    once, twice = [*LINE, f"hydra.run.dir={whole}"], [*LINE, f"hydra.run.dir={parts}"]
    assert train(site, 1, once, twice, twice, stop_at=24 + 11) == [[0, 75, 0]]
    assert compare(parts, whole) == []
    assert (parts / "evaluations.csv").read_bytes() == (whole / "evaluations.csv").read_bytes()
    assert content(whole)["values"]["callbacks"]["calm"]["average"] > 0
    assert [record["step"] for record in records(whole, "scalars")] == list(range(3, 25, 3))
    rows = [line.split(",") for line in (whole / "evaluations.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["8", "16", "24"]
    assert float(rows[-1][2]) > 0.8
    assert train(site, 2, [*LINE, "parallel=ddp", f"hydra.run.dir={shared}"]) == [[0], [0]]
    for kind in ("train", "evaluation", "scalars"):
        for one, other in zip(records(whole, kind), records(shared, kind), strict=True):
            assert numbers(one) == pytest.approx(numbers(other), rel=1e-3)


def test_it_asks_for_the_end_and_mistakes_are_one_line(site: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    lines = [
        [*LINE, "callbacks.calm.below=100", f"hydra.run.dir={run}"],
        ["plugins=[ranking]", "model=embedding"],
        ["plugins=[ranking]", "objective=ranking", "objective.margin=0"],
        ["plugins=[ranking]", "objective=ranking"],
    ]
    assert train(site, 1, *lines) == [[0, 2, 2, 2]]
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 2)  # asked for after step 1
    said = (site / "said0").read_text()
    assert "ended at step 2: the gradient has become small" in said
    errors = [line for line in said.splitlines() if line.startswith("error")]
    unfit = (
        "model=embedding reads triplets, but data=digits gives images: choose another model or another data"
    )
    assert errors[:2] == [f"error: {unfit}", "error: objective.margin=0 is wrong: it must be a number > 0"]
    assert f"error: {unfit}" in PAGE.read_text()
    [last] = errors[2:]
    assert last.startswith(
        "error: objective=ranking does not work with model=cnn and data=digits: ValueError: "
    )
    assert said.endswith(f"{last}\n")
