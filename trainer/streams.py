"""Standard output and errors that nobody reads: a closed terminal, a pipe whose reader has ended, or none at all."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def open_missing_streams() -> None:
    """Opens those of the standard streams that this process was started without, as with ``>&-``, on nothing.

    Files that are opened later would get their numbers, and in them would be whatever any library prints.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with suppress(OSError):  # its number is free
                os.fstat(number)
                continue
            nowhere = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            setattr(sys, name, os.fdopen(nowhere, "w" if number else "r"))


def silence_broken_streams() -> None:
    """Sends standard output and errors to nowhere where nobody reads them: Python would fail once more at its exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
        except ValueError:  # closed
            pass


@contextmanager
def to_stdout() -> Iterator[None]:
    """A context for printing to a pipe that may be closed early, as by ``head``: the rest is then dropped."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        silence_broken_streams()


def print_if_read(line: str, *, error: bool = False) -> None:
    """Prints to standard output, or to standard error, either of which may be gone."""
    try:
        print(line, file=sys.stderr if error else sys.stdout, flush=True)
    except OSError:
        silence_broken_streams()
