"""Files that are read in places: opened when they are first needed, in this process or in those forked from it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.errors import DataError

OPEN_FILES = 128
"""At a time, of one folder."""


class OpenFiles(dict[int, int]):
    """File descriptors by number, for ``pread``, which a file's position in another process does not disturb.

    Args:
        path: of a number's file.

    Raises:
        DataError: on access, of a file that cannot be read.
    """

    def __init__(self, path: Callable[[int], Path]) -> None:
        super().__init__()
        self.path = path

    def __missing__(self, number: int) -> int:
        if len(self) == OPEN_FILES:
            os.close(self.pop(next(iter(self))))
        try:
            self[number] = os.open(self.path(number), os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{self.path(number)} cannot be read: {error.strerror}") from None
        return self[number]

    def __del__(self) -> None:
        for descriptor in self.values():
            os.close(descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFiles, (self.path,)  # another process opens its own
