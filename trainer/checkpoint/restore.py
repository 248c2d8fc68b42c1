"""Resuming: the newest checkpoint that is complete on every rank, loaded into the parts of a run."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.state import TrainState, seed_all, set_random_state
from trainer.checkpoint.storage import UNREADABLE, mark_best, path_of, read
from trainer.data.random import mix
from trainer.distributed.ranks import SINGLE_PROCESS, Ranks
from trainer.errors import CheckpointError, one_line


@dataclass(frozen=True)
class Restored:
    """What a checkpoint gave besides the `TrainState`."""

    checkpoint: Path
    monitors: dict[str, Any]
    """The state of the monitors."""
    warnings: list[str]
    """One for each damaged checkpoint that was skipped."""


def restore(
    found: list[Path], state: TrainState, *, same_run: bool, ranks: Ranks = SINGLE_PROCESS
) -> Restored:
    """Loads the first of the checkpoints that every rank can read.

    A rank that had no random numbers when the checkpoint was written gets some that depend on the step: those
    of the seed alone would be the ones of the first steps again.

    Args:
        found: checkpoints of one run, in the order in which they are tried.
        state: takes over what the checkpoint holds.
        same_run: they are the run's own: damaged ones are renamed, so that they are not found again.
        ranks: every one of them calls this.

    Raises:
        UserError: all are damaged, or one is complete but of another model or optimizer, or in another format.
    """
    warned = []
    for checkpoint in found:
        damage = None
        try:
            content = read(checkpoint, state)
            values = pickle.loads(content["values"])
            rng = {rank: pickle.loads(one) for rank, one in content["rng"].items()}
        except UNREADABLE as error:
            damage = f"{type(error).__name__}: {one_line(error)[:200]}"
        damages = [one for one in ranks.all_gather_object(damage) if one]
        if damages:
            warned.append(f"{checkpoint} is damaged and is skipped: {damages[0]}")
            if same_run and ranks.is_rank0:
                checkpoint.rename(checkpoint.with_name(f"damaged_{checkpoint.name}"))
            continue
        state.load(content, values)
        if str(ranks.rank) in rng:
            set_random_state(rng[str(ranks.rank)])
        else:
            seed_all(mix(state.loader.seed, ranks.rank, state.counters.step))
        if same_run and ranks.is_rank0:
            _mark_best_again(path_of(checkpoint.parent, state.counters.best_step))
        return Restored(checkpoint, values["monitors"], warned)
    raise CheckpointError(
        f"every checkpoint in {found[0].parent} is damaged: "
        f"give another checkpoint.resume, or another hydra.run.dir to start anew"
    )


def _mark_best_again(checkpoint: Path) -> None:
    """The last session may have been killed after it wrote its best checkpoint and before it marked it."""
    if checkpoint.exists():
        mark_best(checkpoint)
