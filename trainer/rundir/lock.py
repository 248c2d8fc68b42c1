"""A lock that one process at a time holds on a directory, and that ends with the process, however it ends."""

import fcntl
import os
import sys
from pathlib import Path

LOCK = ".lock"

_held: set[int] = set()
"""File descriptors of the locks of this process."""


class DirectoryLock:
    """Locks a file in the directory: network file systems lock no directories, and only files open for writing.

    Args:
        directory: that exists.
        name: of the file.

    Forked children, such as data workers, do not hold it: they may outlive this process by seconds.

    Raises:
        BlockingIOError: another process holds it.
        FileNotFoundError: the directory does not exist, or was removed just now.
        OSError: the directory cannot be written.
    """

    def __init__(self, directory: Path, name: str = LOCK) -> None:
        self.path = directory / name
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        self._is_released = False
        try:
            self._lock()
        except BaseException:
            os.close(self._file)
            raise
        _held.add(self._file)

    def release(self) -> None:
        """Ends it, unless that was done before; the file stays."""
        if self._is_released:
            return
        self._is_released = True
        _held.discard(self._file)
        os.close(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            print(
                f"warning: {self.path} cannot be locked ({error.strerror}): "
                f"nothing keeps a second process from training there",
                file=sys.stderr,
            )
        if not os.path.samestat(os.stat(self.path), os.fstat(self._file)):
            raise FileNotFoundError(f"{self.path} was replaced")  # its holder before removed the directory


def _close_in_child() -> None:
    for file in _held:
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
