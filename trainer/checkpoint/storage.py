"""Checkpoints on disk: written beside their final name, renamed when complete, found again by that name."""

import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from trainer._private import unflatten_state_dict
from trainer.checkpoint.state import TrainState, random_state
from trainer.distributed.ranks import Ranks
from trainer.errors import CheckpointError, one_line
from trainer.rundir.files import FORMAT, atomic_path, check_format, fsync

MANIFEST = "manifest.json"
BEST = "best"

UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    RuntimeError,
    pickle.UnpicklingError,
    CheckpointException,
)
"""What reading a damaged checkpoint raises, from file system, pickle and torch."""


# Finding -------------------------------------------------------------------------------------------------------------


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, in a run's folder of checkpoints."""
    return folder / f"step_{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder of them that were written to their end, newest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if re.fullmatch(r"step_\d{8,}", path.name)), reverse=True)


def find_checkpoints(path: Path, option: str = "") -> list[Path]:
    """The checkpoints that a path given by a user means, newest first: those of a run, or the one that it is itself.

    Args:
        path: a run directory or one of its checkpoints.
        option: what the user gave the path to, such as ``checkpoint.resume=``, for the message.

    Raises:
        CheckpointError: the path is neither.
    """
    if (path / MANIFEST).is_file():
        return [path.resolve()]  # it may be the link to the best
    if found := list_checkpoints(path / "checkpoints"):
        return found
    what = "has no checkpoints" if path.is_dir() else "does not exist"
    raise CheckpointError(f"{option}{path} {what}: give a run directory or one of its checkpoints")


def best(folder: Path) -> str | None:
    """The name of the checkpoint that is marked best; None if none is."""
    return os.readlink(folder / BEST) if (folder / BEST).is_symlink() else None


def mark_best(checkpoint: Path) -> None:
    """Makes a checkpoint the best of its run: the link ``checkpoints/best`` leads to it."""
    with atomic_path(checkpoint.parent / BEST) as link:
        link.symlink_to(checkpoint.name)


# Removing ------------------------------------------------------------------------------------------------------------


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint; should that be interrupted, what is left is not listed."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def remove_old(folder: Path, keep_last: int) -> None:
    """Removes all but the newest checkpoints and the best."""
    for old in [c for c in list_checkpoints(folder) if c.name != best(folder)][keep_last:]:
        remove(old)


def remove_partial(folder: Path) -> None:
    """Removes partial checkpoints left by a previous session, which was writing or removing them."""
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)


# Writing -------------------------------------------------------------------------------------------------------------


def content_of(state: TrainState, monitors: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
    """What this rank contributes to a checkpoint of the present step: its shards and its random numbers.

    Tensors that are the same on all ranks are written by each in part; all other values by the first rank.

    Args:
        state: the parts of the run; its tensors are not copied.
        monitors: the state of the monitors.
        ranks: this one among those that save.
    """
    content = {**state.tensors(), "rng": {str(ranks.rank): pickle.dumps(random_state())}}
    if ranks.is_rank0:
        content["values"] = pickle.dumps({**state.values(), "monitors": dict(monitors)})
    return content


def write(
    folder: Path, step: int, content: Mapping[str, Any], ranks: Ranks, group: ProcessGroup | None
) -> Path:
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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.save(dict(content), checkpoint_id=part, process_group=group, no_dist=group is None)
        if ranks.is_rank0:
            _publish(part, final, step)
    except (CheckpointException, OSError) as error:
        if ranks.is_rank0:
            shutil.rmtree(part, ignore_errors=True)
        raise CheckpointError(f"the checkpoint {final} cannot be written: {_cause(error)}") from error
    return final


def _publish(part: Path, final: Path, step: int) -> None:
    """Gives a directory, in which all tensors are, its manifest and its final name."""
    files = {file.name: file.stat().st_size for file in part.iterdir()}
    (part / MANIFEST).write_text(json.dumps({"format": FORMAT, "step": step, "files": files}))
    fsync(part / MANIFEST)
    if final.exists():  # of a previous session, which was resumed from before it
        remove(final)
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


# Reading -------------------------------------------------------------------------------------------------------------


def read(checkpoint: Path, state: TrainState | None = None, part: str = "") -> dict[str, Any]:
    """What `write` wrote, in fresh memory on the CPU: a damaged checkpoint has changed nothing when this raises.

    Args:
        checkpoint: its directory.
        state: tensors that are sharded in it are read in the same shards; all others, and all without it, as a whole.
        part: the entry to read, such as ``model``; left out, all.

    Raises:
        UserError: the checkpoint has another format.
        Exception: one of `UNREADABLE`: it is damaged.
    """
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    check_format(manifest, checkpoint / MANIFEST)
    for name, size in manifest["files"].items():
        actual = (checkpoint / name).stat().st_size
        if actual != size:
            raise ValueError(f"{name} has {actual} of {size} bytes")
    reader = dcp.FileSystemReader(checkpoint)
    metadata = reader.read_metadata()
    ours = state.tensors() if state else {}
    flat = {
        key: _allocate_like(entry, _template_for(ours, metadata.planner_data[key]))
        for key, entry in metadata.state_dict_metadata.items()
        if not part or metadata.planner_data[key][0] == part
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(flat, storage_reader=reader, no_dist=True)
    return unflatten_state_dict(flat, {key: metadata.planner_data[key] for key in flat})


def _template_for(ours: Mapping[str, Any], path: tuple[Any, ...]) -> Any:
    """What a state has in a place; for what an optimizer has not made yet, the parameter that it belongs to."""
    value: Any = ours
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None and path[:2] == ("optimizer", "state"):
        return ours.get("model", {}).get(path[2])
    return value


def _allocate_like(entry: Any, template: Any) -> Tensor | None:
    """Memory for a saved entry: a shard where its template is one. Values other than tensors need none."""
    if not isinstance(entry, TensorStorageMetadata):
        return None
    dtype = entry.properties.dtype
    if not isinstance(template, DTensor) or template.shape != entry.size:
        return torch.empty(entry.size, dtype=dtype)
    shard = torch.empty(template.to_local().shape, dtype=dtype)
    return DTensor.from_local(
        shard,
        template.device_mesh,
        template.placements,
        run_check=False,
        shape=template.shape,
        stride=template.stride(),
    )
