"""Callbacks on two ranks: the numbers of one rank, and an end on which all agree."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.callbacks.test_built_in import Reported
from tests.distributed.ranks import on_ranks
from tests.distributed.runs import parts_of
from trainer.callbacks import CALLBACKS, Callback, Training
from trainer.checkpoint.manager import CheckpointManager
from trainer.checkpoint.reading import read
from trainer.distributed.ranks import Ranks
from trainer.monitor import MonitorOptions, Monitors
from trainer.signals import StopSignal
from trainer.training.loop import Trainer
from trainer.training.run import describe

LINE = (
    "model=mlp model.widths=[6] data.batch_size=32 data.crop_padding=0 schedule=constant optimizer=sgd "
    "optimizer.momentum=0 loop.max_steps=6 loop.log_every=2 loop.eval_every=3 device=cpu"
)
WATCHED = "callbacks=[update_ratios,sharpness] callbacks.sharpness.samples=30"


def outcome(ranks: Ranks, folder: Path, line: str) -> dict[str, Any]:
    """What the callbacks of a run report, their state at its end, and its last step."""
    parts, sink = parts_of(ranks, *line.split(), dtype=torch.float32), Reported()
    info = describe(parts, folder, 0)
    checkpoints = CheckpointManager(folder, ranks, parts.config.checkpoint)
    monitors = Monitors(info, MonitorOptions(sinks=[]), {"reported": sink})
    Trainer(parts, monitors=monitors, checkpoints=checkpoints, stop=StopSignal()).fit()
    state = parts.state.callbacks.state_dict()
    return {"reported": sink.records, "state": state, "step": parts.counters.step}


class OnlyTheLastRank(Callback):
    """Asks for the end on one rank, at one of the moments."""

    def __init__(self, *, moment: str) -> None:
        def ask(training: Training, *_: Any) -> None:
            if training.ranks.rank == training.ranks.world_size - 1 and training.progress().step >= 1:
                training.stop("enough")

        setattr(self, moment, ask)


def ends_at(ranks: Ranks, folder: Path) -> list[int]:
    """The last step, by the moment at which the last rank asks for the end."""
    CALLBACKS.register("test_only")(OnlyTheLastRank)
    line = f"{LINE} parallel=ddp checkpoint.every_steps=1 callbacks=[test_only] callbacks.test_only.moment="
    moments = ("after_backward", "after_update", "after_evaluation")
    return [outcome(ranks, folder / moment, line + moment)["step"] for moment in moments]


@pytest.mark.ranks
@pytest.mark.parametrize("line", [f"{WATCHED} parallel=ddp", "callbacks=[update_ratios] parallel=fsdp"])
def test_the_numbers_are_those_of_one_rank(line: str, tmp_path: Path) -> None:
    [alone] = on_ranks(1, outcome, tmp_path / "alone", f"{LINE} {line.partition(' parallel')[0]}")
    both = on_ranks(2, outcome, tmp_path / "both", f"{LINE} {line}")
    for one in both:
        assert [step for step, _ in one["reported"]] == [step for step, _ in alone["reported"]]
        for (_, ours), (_, expected) in zip(one["reported"], alone["reported"], strict=True):
            assert ours == pytest.approx(expected, rel=1e-3)


@pytest.mark.ranks
def test_one_rank_ends_all_and_states_agree(tmp_path: Path) -> None:
    assert on_ranks(2, ends_at, tmp_path) == [[2, 2, 3], [2, 2, 3]]
    before, end = (read(tmp_path / "after_update" / f"step_0000000{step}")["values"] for step in (1, 2))
    assert before["callbacks"]["training.stop"] == {"reason": "enough", "ends_here": False}
    assert end["callbacks"].keys() == {"test_only"}
    line = f"{LINE} callbacks=[gradient_noise_scale] loop.accumulate=2 parallel=ddp"
    first, second = on_ranks(2, outcome, tmp_path / "noise", line)
    assert first["state"] == second["state"]
    assert first["state"]["gradient_noise_scale"]["noise"] != 0
