"""Resuming: the newest checkpoint that is whole, loaded into the parts of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.manifest import Damaged, failure, verify
from trainer.checkpoint.reading import read
from trainer.checkpoint.state import TrainState, seed_all, set_random_state
from trainer.checkpoint.storage import mark_best, path_of, put_away
from trainer.checkpoint.writing import RANDOM
from trainer.data.random import mix
from trainer.distributed.ranks import SINGLE_PROCESS, Ranks
from trainer.errors import CheckpointError, MachineError


@dataclass(frozen=True)
class Restored:
    """What a checkpoint gave besides the `TrainState`."""

    checkpoint: Path
    monitors: dict[str, Any]
    """The state of the monitors."""
    data: dict[str, str]
    """The fingerprint of the data that the run was trained on."""
    warnings: list[str]
    """One for each damaged checkpoint that was skipped."""


def restore(
    found: list[Path],
    state: TrainState,
    *,
    same_run: bool,
    keep_best: bool = True,
    ranks: Ranks = SINGLE_PROCESS,
) -> Restored:
    """Loads the first of the checkpoints that is whole.

    A rank that had no random numbers when the checkpoint was written gets some that depend on the step: those
    of the seed alone would be the ones of the first steps again.

    Args:
        found: checkpoints of one run, in the order in which they are tried.
        state: takes over what the checkpoint holds.
        same_run: they are the run's own: all of the state goes on, and damaged ones are renamed, so that they are not
            found again. Otherwise a new run starts with their weights and their optimizer's state.
        keep_best: the run marks its best checkpoint.
        ranks: every one of them calls this.

    Raises:
        UserError: all are damaged, or one is whole but of another model or optimizer, or in another format.
        MachineError: one cannot be read, which is no damage.
    """
    warned = []
    for checkpoint in found:
        if damage := find_damage(checkpoint, ranks):
            warned.append(f"{checkpoint} is damaged and is skipped: {damage}")
            if same_run and ranks.is_rank0:
                put_away(checkpoint)
            continue
        content = read(checkpoint, state)
        if not same_run:
            state.start_from(content)
            return Restored(checkpoint, {}, {}, warned)
        state.load(content, content["values"])
        # what was not saved, as of another number of ranks or GPUs, must not repeat what it began with
        seed_all(mix(state.loader.seed, ranks.rank, state.counters.step))
        if random := content[RANDOM].get(str(ranks.rank)):
            set_random_state(random)
        if keep_best and ranks.is_rank0:
            _mark_best_again(path_of(checkpoint.parent, state.counters.best_step))
        values = content["values"]
        return Restored(checkpoint, values["monitors"], values["data"], warned)
    raise CheckpointError(
        f"every checkpoint in {found[0].parent} is damaged: "
        f"give another checkpoint.resume, or another hydra.run.dir to start anew"
    )


def find_damage(checkpoint: Path, ranks: Ranks) -> str | None:
    """What is damaged in a checkpoint, of which each rank reads a part; None if it is whole.

    Raises:
        UserError: it has another format.
        MachineError: one of the ranks cannot read it.
    """

    def check() -> list[str | None]:
        try:
            verify(checkpoint, ranks.rank, ranks.world_size)
        except Damaged as damage:
            return [str(damage), None]
        except (OSError, MemoryError) as error:
            return [None, failure(error)]
        return [None, None]

    found = ranks.all_gather_object(ranks.run_on_all(check))
    if failures := [failure for _, failure in found if failure]:
        raise MachineError(f"{checkpoint} cannot be read: {failures[0]}; nothing was changed, try again")
    return next((damage for damage, _ in found if damage), None)


def _mark_best_again(checkpoint: Path) -> None:
    """The last session may have been killed after it wrote its best checkpoint and before it marked it."""
    if checkpoint.exists():
        mark_best(checkpoint)
