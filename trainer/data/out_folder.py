"""The folder that a command of ``trainer.data`` fills: one process at a time, which goes on after an interruption."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import UserError
from trainer.rundir.files import make_directories, remove_empty
from trainer.rundir.lock import LOCK, DirectoryLock

PROGRESS = "progress.json"
"""What is to come of it, and how far it has come; gone when it is complete."""


@contextmanager
def locked(folder: Path, is_unused: Callable[[], bool], *leftovers: str) -> Iterator[None]:
    """Makes a folder, which this process alone may write to, and removes it at the end if nothing has come of it.

    Args:
        folder: its path.
        is_unused: whether nothing has, so that its notes, and parents made for it, are removed.
        leftovers: names of further files that are removed then.

    Raises:
        UserError: another process writes to it, or it cannot be made.
    """
    try:
        made = make_directories(folder, exist_ok=True)
        lock = DirectoryLock(folder)
    except BlockingIOError:
        raise UserError(f"another process writes to {folder}: wait for it or choose another --out") from None
    except OSError as error:
        raise UserError(f"--out {folder} cannot be made: {error.strerror}") from None
    try:
        yield
    finally:
        if is_unused():
            for name in (PROGRESS, LOCK, *leftovers):
                (folder / name).unlink(missing_ok=True)
            lock.release()  # NFS keeps a file that is open there under another name
            remove_empty(made)
        lock.release()
