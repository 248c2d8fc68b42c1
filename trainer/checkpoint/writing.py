"""Writing a checkpoint: beside its final name, renamed when it is complete and on the disk."""

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import CheckpointException

from trainer.checkpoint.encoding import encode
from trainer.checkpoint.manifest import Files, checksums, write_manifest
from trainer.checkpoint.state import TrainState, random_state
from trainer.checkpoint.storage import path_of, replaced
from trainer.distributed.ranks import Ranks
from trainer.errors import CheckpointError, one_line
from trainer.rundir.files import fsync

VALUES = "values.json"
"""All that is no tensor, and where the tensors belong in it."""

RANDOM = "random"
"""Before the number of a rank, the name of the tensor that holds the state of its random number generators."""


@dataclass(frozen=True)
class Content:
    """What a rank contributes to a checkpoint."""

    tensors: Mapping[str, Tensor]
    """By name: whole ones, which are the same on all ranks, and the shards of others."""
    values: str
    """JSON, as `trainer.checkpoint.encoding.encode` makes it; that of the first rank is written."""


def content_of(state: TrainState, monitors: Mapping[str, Any], ranks: Ranks) -> Content:
    """What this rank contributes to a checkpoint of the present step: its shards and its random numbers.

    Args:
        state: the parts of the run; its tensors are not copied.
        monitors: the state of the monitors.
        ranks: this one among those that save.

    Raises:
        CheckpointError: the model or the optimizer has a state that a checkpoint cannot hold.
    """
    tensors: dict[str, Tensor] = {}
    values = encode({**state.tensors(), "values": {**state.values(), "monitors": monitors}}, tensors)
    random = bytearray(json.dumps(random_state()).encode())
    tensors[f"{RANDOM}/{ranks.rank}"] = torch.frombuffer(random, dtype=torch.uint8)
    return Content(tensors, json.dumps(values, allow_nan=False))


def write(folder: Path, step: int, content: Content, ranks: Ranks, group: ProcessGroup | None) -> Path:
    """Writes a checkpoint; all ranks call it, and once it returns on the first one, the path exists.

    Args:
        folder: the run's ``checkpoints`` directory.
        step: the step that the content is of.
        content: this rank's `content_of`.
        ranks: the processes that train together.
        group: of all ranks, on CPUs, for this alone; None for a single process.

    Returns:
        The checkpoint's path.

    Raises:
        CheckpointError: the disk is full or does not take it for another reason; nothing is left of it then.
    """
    final = path_of(folder, step)
    part = folder / f".{final.name}.part"
    try:
        if ranks.is_rank0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True, exist_ok=True)  # another rank may have made it already
            (part / VALUES).write_text(content.values, encoding="utf-8")
            fsync(part / VALUES)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.save(dict(content.tensors), checkpoint_id=part, process_group=group, no_dist=group is None)
        files = _checksums_of_all(part, ranks, group)
        if ranks.is_rank0:
            _publish(part, final, step, files)
    except (CheckpointException, OSError) as error:
        if ranks.is_rank0:
            shutil.rmtree(part, ignore_errors=True)
        raise CheckpointError(f"the checkpoint {final} cannot be written: {_cause(error)}") from error
    return final


def _checksums_of_all(part: Path, ranks: Ranks, group: ProcessGroup | None) -> Files:
    """The checksums of all files on the first rank; each rank reads those that it has written.

    Raises:
        OSError: one of the ranks cannot.
    """
    mine: Files | str
    try:
        files = list(part.glob(f"__{ranks.rank}_*"))
        mine = checksums([*files, part / VALUES, part / ".metadata"] if ranks.is_rank0 else files)
    except OSError as error:
        mine = error.strerror or one_line(error)
    found: list[Any] = [mine]
    if group is not None:
        found = [None] * ranks.world_size
        dist.all_gather_object(found, mine, group=group)
    if errors := [one for one in found if isinstance(one, str)]:
        raise OSError(None, errors[0])
    return {name: sums for one in found for name, sums in one.items()}


def _publish(part: Path, final: Path, step: int, files: Files) -> None:
    """Gives a directory, in which all files are, its manifest and its final name."""
    write_manifest(part, step, files)
    with replaced(final):
        part.rename(final)
    fsync(final.parent)


def _cause(error: BaseException) -> str:
    """What the file system said, below what torch made of it."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    causes = [error]
    while below := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(below)
    said = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
    return said[0] if said else one_line(error)
