"""The random numbers of a rank that a run did not have when its checkpoint was written."""

from pathlib import Path

import torch
from torch import Tensor

from tests.training.helpers import parts_of
from trainer.checkpoint.manager import CheckpointManager
from trainer.checkpoint.restore import restore
from trainer.checkpoint.state import seed_all
from trainer.checkpoint.storage import path_of
from trainer.config.schema import CheckpointOptions
from trainer.data.random import mix
from trainer.distributed.ranks import SINGLE_PROCESS, RankInfo, Ranks
from trainer.training.step import TrainStep


def test_a_new_rank_does_not_draw_those_of_the_first_steps_again(tmp_path: Path) -> None:
    parts = parts_of()
    train_step = TrainStep(parts)
    checkpoints = CheckpointManager(tmp_path, SINGLE_PROCESS, CheckpointOptions())
    for _ in range(2):
        train_step()
        checkpoints.save(parts.state, monitors={})

    def drawn(step: int, rank: int) -> Tensor:
        seed_all(mix(parts.config.seed, rank))  # as of a new run
        ranks = Ranks(RankInfo(rank, world_size=3))
        restore([path_of(tmp_path, step)], parts.state, same_run=True, ranks=ranks)
        return torch.rand(8)

    seen = [drawn(1, 1), drawn(2, 1), drawn(1, 2)]
    seed_all(mix(parts.config.seed, 1))
    seen.append(torch.rand(8))
    assert len({tuple(numbers.tolist()) for numbers in seen}) == 4
    assert torch.equal(drawn(1, 1), seen[0])
