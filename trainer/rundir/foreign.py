"""Reads files of run directories that somebody else may have written, or that were damaged: nothing but plain values.

Whatever is in them, reading costs no more memory than the largest file that is accepted, and raises a `ValueError` or
an `OSError` or succeeds.
"""

import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from trainer.options import is_number

MAX_BYTES = 2**26
"""Of a file that is read as a whole, and of a line of one that is read line by line."""

MAX_VALUES = 100_000
MAX_DEPTH = 30
MAX_NUMBER = 2**53
"""Of integers: they are numbers of steps, seeds and sizes, which become floats in means and plots."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    def flatten_mapping(self, node: Any) -> None:
        """Leaves merge keys, which multiply and which no frozen config has, to be refused."""


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        OSError: it cannot be read, or is no regular file, such as a pipe that nobody writes to.
        ValueError: it is no UTF-8, or too large.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"{path} is not a regular file")
    if found.st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES} bytes")
    return path.read_text(encoding="utf-8")


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, one at a time; of one that is too long its beginning. None where there is no file."""
    try:
        if not path.is_file():
            return
        with path.open("rb") as file:
            while line := file.readline(MAX_BYTES):
                yield line
                while not line.endswith(b"\n") and (line := file.readline(MAX_BYTES)):
                    pass
    except OSError:
        return


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or nested too deep.
    """
    try:
        return plain(json.loads(text))
    except RecursionError:
        raise ValueError("nested too deep") from None


def parse_yaml(text: str) -> Any:
    """The value of a YAML text as JSON has it: texts in place of dates and the like.

    Raises:
        ValueError: it is none, is nested too deep, or becomes too large where parts of it are repeated.
    """
    try:
        return plain(yaml.load(text, _Loader))
    except (yaml.YAMLError, RecursionError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def plain(value: Any) -> Any:
    """A value with all within it as JSON has it; other values, and integers beyond `MAX_NUMBER`, as text.

    Raises:
        ValueError: it has too many parts, or is nested too deep.
    """
    left = MAX_VALUES

    def copy(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ValueError("too many values, or nested too deep")
        if isinstance(value, Mapping):
            return {str(key): copy(each, depth + 1) for key, each in value.items()}
        if isinstance(value, list | tuple | set):
            items = sorted(value, key=str) if isinstance(value, set) else value
            return [copy(each, depth + 1) for each in items]
        if value is None or isinstance(value, bool | str | float):
            return value
        return value if is_number(value) and abs(value) <= MAX_NUMBER else str(value)

    return copy(value, 0)
