"""Checkpoints in their folder: found by their names, marked as the best, put away and removed."""

import itertools
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.checkpoint.manifest import MANIFEST
from trainer.errors import CheckpointError
from trainer.rundir.files import atomic_path

BEST = "best"
"""A link to the best checkpoint, or a file with its name where there are no links."""

DAMAGED = "damaged_"
"""Before the name of a checkpoint that was found to be damaged."""

BEFORE = ".before"
"""After the name of a checkpoint that is being replaced."""

# Finding -------------------------------------------------------------------------------------------------------------


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, in a run's folder of checkpoints."""
    return folder / f"step_{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder of them that were written to their end, newest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    named = [path for path in found if re.fullmatch(r"step_\d{8,}", path.name)]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def list_damaged(folder: Path) -> list[Path]:
    """What was put away in a run's folder of checkpoints because it is damaged."""
    return sorted(folder.glob(f"{DAMAGED}*"))


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
    place = folder / BEST
    if place.is_symlink():
        return os.readlink(place)
    if place.is_file():
        return place.read_text()
    with suppress(OSError):  # a copy of the run has a copy of the checkpoint where the link was
        manifest = (place / MANIFEST).read_bytes()
        return next(c.name for c in list_checkpoints(folder) if (c / MANIFEST).read_bytes() == manifest)
    return None


def mark_best(checkpoint: Path) -> None:
    """Makes a checkpoint the best of its run: the link ``checkpoints/best`` leads to it."""
    place = checkpoint.parent / BEST
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    with atomic_path(place) as part:
        try:
            part.symlink_to(checkpoint.name)
        except OSError:  # some file systems have no links
            part.write_text(checkpoint.name)


# Removing ------------------------------------------------------------------------------------------------------------


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint; should that be interrupted, what is left is not listed."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def remove_old(folder: Path, keep_last: int) -> None:
    """Removes all but the newest checkpoints and the best.

    What cannot be removed, as on NFS a file that somebody reads, stays until `remove_partial` or the next time.
    """
    for old in [c for c in list_checkpoints(folder) if c.name != best(folder)][keep_last:]:
        with suppress(OSError):
            remove(old)


def put_away(checkpoint: Path) -> None:
    """Renames a damaged checkpoint, so that it is not found again."""
    for number in itertools.count(1):
        place = checkpoint.with_name(f"{DAMAGED}{checkpoint.name}{f'_{number}' if number > 1 else ''}")
        if not os.path.lexists(place):
            checkpoint.rename(place)
            return


@contextmanager
def replaced(checkpoint: Path) -> Iterator[None]:
    """Makes room for a checkpoint; one of the same step, from an earlier session, is removed at the end.

    Should that be interrupted, `recover` puts it back.
    """
    before = checkpoint.with_name(f".{checkpoint.name}{BEFORE}")
    if checkpoint.exists():
        checkpoint.rename(before)
    yield
    shutil.rmtree(before, ignore_errors=True)


def recover(folder: Path) -> None:
    """Puts back the checkpoint that an interrupted session was replacing."""
    for before in folder.glob(f".step_*{BEFORE}"):
        checkpoint = folder / before.name.removeprefix(".").removesuffix(BEFORE)
        if not checkpoint.exists():
            before.rename(checkpoint)


def remove_partial(folder: Path) -> None:
    """Removes partial checkpoints left by a previous session, which was writing or removing them."""
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)
