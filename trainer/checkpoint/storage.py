"""Checkpoints on disk: written beside their final name, renamed when whole, found again by that name."""

import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from trainer.checkpoint.state import TrainState, random_state, set_random_state
from trainer.distributed.ranks import SINGLE_PROCESS, Ranks
from trainer.errors import CheckpointError, one_line

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
"""What reading a damaged checkpoint raises, from file system, pickle and torch alike."""


def content_of(state: TrainState, ranks: Ranks) -> dict[str, Any]:
    """What this rank contributes to a checkpoint of the present step: its shards and its random numbers.

    Of what all ranks have alike each writes a part; what only the first one knows is its to write.
    """
    content = {**state.tensors(), "rng": {str(ranks.rank): pickle.dumps(random_state())}}
    return {**content, "values": pickle.dumps(state.values())} if ranks.is_rank0 else content


def write(
    folder: Path, step: int, content: Mapping[str, Any], ranks: Ranks, group: ProcessGroup | None
) -> Path:
    """Writes a checkpoint, together with the other ranks; it has its final name once the first rank returns.

    Args:
        group: of all ranks, on CPUs, for this alone.

    Raises:
        CheckpointError: the disk is full or does not take it for another reason; nothing is left of it then.
    """
    final = path_of(folder, step)
    part = folder / f".{final.name}.part"
    try:
        if ranks.is_rank0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True, exist_ok=True)  # another rank may be at it already
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.save(dict(content), checkpoint_id=part, process_group=group, no_dist=group is None)
        if ranks.is_rank0:
            files = {file.name: file.stat().st_size for file in part.iterdir()}
            _write(part / MANIFEST, json.dumps({"step": step, "files": files}))
            if final.exists():  # of an earlier life of the run, which went on from before it
                remove(final)
            part.rename(final)
            _sync(folder)
    except (CheckpointException, OSError) as error:
        if ranks.is_rank0:
            shutil.rmtree(part, ignore_errors=True)
        raise CheckpointError(f"the checkpoint {final} cannot be written: {_cause(error)}") from error
    return final


def _cause(error: BaseException) -> str:
    """What the file system said, below what torch made of it."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    causes = [error]
    while below := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(below)
    said = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
    return said[0] if said else one_line(error)


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def mark_best(checkpoint: Path) -> None:
    """Makes a checkpoint the best of its run: the link ``checkpoints/best`` leads to it."""
    link = checkpoint.parent / f".{BEST}.part"
    link.unlink(missing_ok=True)
    link.symlink_to(checkpoint.name)
    link.rename(checkpoint.parent / BEST)


def best(folder: Path) -> str | None:
    """The name of the checkpoint that is marked best."""
    return os.readlink(folder / BEST) if (folder / BEST).is_symlink() else None


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint so that no half of it is ever taken for a whole one."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def remove_old(folder: Path, keep_last: int) -> None:
    """Removes all but the newest checkpoints and the best."""
    for old in [c for c in list_checkpoints(folder) if c.name != best(folder)][keep_last:]:
        remove(old)


def remove_partial(folder: Path) -> None:
    """Removes what an earlier life of the run left half written or half removed."""
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, newest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((c for c in found if re.fullmatch(r"step_\d{8,}", c.name)), reverse=True)


def candidates(path: Path) -> list[Path]:
    """What can be resumed from a path: a run directory's checkpoints, newest first, or the checkpoint itself.

    Raises:
        CheckpointError: the path is neither.
    """
    if (path / MANIFEST).is_file():
        return [path]
    if found := list_checkpoints(path / "checkpoints"):
        return found
    what = "has no checkpoints" if path.is_dir() else "does not exist"
    raise CheckpointError(f"checkpoint.resume={path} {what}: give a run directory or one of its checkpoints")


@dataclass(frozen=True)
class Restored:
    """What was restored beside the `TrainState`."""

    checkpoint: Path
    monitors: dict[str, Any]
    """The state of the monitors."""
    warnings: list[str]
    """One for each damaged checkpoint that was skipped."""


def restore(
    found: list[Path], state: TrainState, *, same_run: bool, ranks: Ranks = SINGLE_PROCESS
) -> Restored:
    """Loads the first of the checkpoints that is whole for every rank.

    A rank that had no random numbers of its own when the checkpoint was written keeps those that it has.

    Args:
        same_run: they are the run's own: damaged ones are renamed, so that they are not found again.

    Raises:
        CheckpointError: all are damaged, or one is whole but of another model or optimizer.
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
        best_one = path_of(checkpoint.parent, state.counters.best_step)
        if (
            same_run and ranks.is_rank0 and best_one.exists()
        ):  # it may have been killed before that was marked
            mark_best(best_one)
        return Restored(checkpoint, values["monitors"], warned)
    raise CheckpointError(
        f"every checkpoint in {found[0].parent} is damaged: "
        f"give another checkpoint.resume, or another hydra.run.dir to start anew"
    )


def read(checkpoint: Path, state: TrainState | None = None, part: str = "") -> dict[str, Any]:
    """What `write` wrote, in fresh memory on the CPU: a checkpoint that is damaged has then changed nothing.

    Args:
        state: what the state has in shards is read in such shards; all else, and all without it, is whole.
        part: the entry to read, such as ``model``; left out, all.
    """
    manifest = json.loads((checkpoint / MANIFEST).read_text())
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


def _allocate_like(entry: Any, like: Any) -> Tensor | None:
    """Memory for a saved entry: a shard where its likeness is one. Values other than tensors need none."""
    if not isinstance(entry, TensorStorageMetadata):
        return None
    dtype = entry.properties.dtype
    if not isinstance(like, DTensor) or like.shape != entry.size:
        return torch.empty(entry.size, dtype=dtype)
    shard = torch.empty(like.to_local().shape, dtype=dtype)
    return DTensor.from_local(
        shard, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """A rename survives a power failure once the directory is synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
