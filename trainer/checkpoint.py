"""Checkpoints on disk: written beside their final name, renamed when whole, found again by that name."""

import json
import os
import pickle
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint._nested_dict import unflatten_state_dict
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from trainer.errors import CheckpointError, one_line
from trainer.state import TrainState, random_state, set_random_state

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


def save(folder: Path, state: TrainState, *, keep_last: int) -> None:
    """Writes a checkpoint of the present step and removes all but the newest.

    Args:
        folder: the run's ``checkpoints`` directory. A checkpoint that `mark_best` marked stays.
        keep_last: how many to keep, at least 1.
    """
    final = path_of(folder, state.counters.step)
    part = folder / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    rng = {"0": pickle.dumps(random_state())}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        content = {**state.tensors(), "values": pickle.dumps(state.values()), "rng": rng}
        dcp.save(content, checkpoint_id=part, no_dist=True)
    files = {file.name: file.stat().st_size for file in part.iterdir()}
    _write(part / MANIFEST, json.dumps({"step": state.counters.step, "files": files}))
    if final.exists():  # of an earlier life of the run, which went on from before it
        remove(final)
    part.rename(final)
    _sync(folder)
    for old in [c for c in whole(folder) if c.name != best(folder)][keep_last:]:
        remove(old)


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


def sweep(folder: Path) -> None:
    """Removes what an earlier life of the run left half written or half removed."""
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)


def whole(folder: Path) -> list[Path]:
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
    if found := whole(path / "checkpoints"):
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


def restore(found: list[Path], state: TrainState, *, same_run: bool) -> Restored:
    """Loads the first of the checkpoints that is whole.

    Args:
        same_run: they are the run's own: damaged ones are renamed, so that they are not found again.

    Raises:
        CheckpointError: all are damaged, or one is whole but of another model or optimizer.
    """
    warned = []
    for checkpoint in found:
        try:
            content = read(checkpoint)
            values, rng = pickle.loads(content["values"]), pickle.loads(content["rng"]["0"])
        except UNREADABLE as error:
            warned.append(
                f"{checkpoint} is damaged and is skipped: {type(error).__name__}: {one_line(error)[:200]}"
            )
            if same_run:
                checkpoint.rename(checkpoint.with_name(f"damaged_{checkpoint.name}"))
            continue
        state.load(content, values)
        set_random_state(rng)
        best_one = path_of(checkpoint.parent, state.counters.best_step)
        if same_run and best_one.exists():  # the run may have been killed before it was marked
            mark_best(best_one)
        return Restored(checkpoint, values["monitors"], warned)
    raise CheckpointError(
        f"every checkpoint in {found[0].parent} is damaged: "
        f"give another checkpoint.resume, or another hydra.run.dir to start anew"
    )


def read(checkpoint: Path) -> dict[str, Any]:
    """What `save` wrote, in fresh memory on the CPU: a checkpoint that is damaged has then changed nothing."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    for name, size in manifest["files"].items():
        actual = (checkpoint / name).stat().st_size
        if actual != size:
            raise ValueError(f"{name} has {actual} of {size} bytes")
    reader = dcp.FileSystemReader(checkpoint)
    metadata = reader.read_metadata()
    flat = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        if isinstance(entry, TensorStorageMetadata)
        else None
        for key, entry in metadata.state_dict_metadata.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(flat, storage_reader=reader, no_dist=True)
    return unflatten_state_dict(flat, metadata.planner_data)


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
