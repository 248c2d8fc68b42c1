"""What the commands other than training share: exit codes, mistakes in one line, arguments, tables, progress bars."""

import os
import sys
import traceback
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Collection, Iterable
from importlib.util import find_spec
from io import TextIOWrapper
from typing import NoReturn, TypeVar

from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from rich.text import Text

from trainer.errors import ConfigError, MachineError, MissingExtra, UserError
from trainer.rundir.status import CRASHED, FINISHED, INTERRUPTED, USER_ERROR
from trainer.streams import to_stdout

Item = TypeVar("Item")

PIPE_COLUMNS = 200
"""Of tables that go to no terminal."""


class Parser(ArgumentParser):
    """Raises ConfigError for what argparse would print its usage and exit for."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(f"{message} (see {self.prog} --help)")


def print_any_text() -> None:
    """Has standard output and errors escape what their encoding lacks, such as letters of a path in an ASCII locale."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def exit_code(command: Callable[[], int]) -> int:
    """The exit code of a command: its own, or that of a mistake or a failure, printed in one line, or of Ctrl-C."""
    print_any_text()
    try:
        with to_stdout():
            return command()
        return FINISHED  # nobody reads the rest of what it prints
    except UserError as error:
        return refuse(error)
    except MachineError as error:
        return fail(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def refuse(error: UserError) -> int:
    """Prints a user's mistake; returns the exit code for one."""
    show_cause(error)
    print(f"error: {error}", file=sys.stderr)
    return USER_ERROR


def show_cause(error: UserError) -> None:
    """Prints the traceback of what a component raised, if HYDRA_FULL_ERROR=1 asks for it, as Hydra itself does."""
    if error.__cause__ and os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error.__cause__)


def fail(error: MachineError) -> int:
    """Prints what failed before the command could do its work; returns the exit code for it."""
    print(f"crashed: {error}", file=sys.stderr)
    return CRASHED


def count(text: str, least: int = 1) -> int:
    """The integer in an argument, at least ``least``.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise ArgumentTypeError(f"{text!r} is not an integer of at least {least}")
    return int(text)


def nonnegative(text: str) -> float:
    """The number in an argument, at least 0.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def table_console(*, quiet: bool = False) -> Console:
    """Standard output for tables: wide where it is no terminal, so that a pipe or a file gets a row on one line.

    Args:
        quiet: print nothing.
    """
    console = Console(quiet=quiet)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = max(console.width, PIPE_COLUMNS)
    return console


def folding_table(*heads: str, title: str | None = None, whole: int = 0) -> Table:
    """A table whose words that are too long for the terminal go on in the next line, where rich would cut them off.

    Args:
        heads: of its columns; like the title, text that is not markup.
        title: above its left edge.
        whole: so many of the first columns keep their width, and the others get narrower.
    """
    columns = [Column(Text(head), overflow="fold", no_wrap=at < whole) for at, head in enumerate(heads)]
    return Table(*columns, title=None if title is None else Text(title), title_justify="left")


def need_package(what: str, package: str, extra: str) -> None:
    """Checks that a package is installed, without importing it, which may take seconds.

    Args:
        what: needs it, such as ``--confusion``.
        package: its name.
        extra: the extra of this project that installs it.

    Raises:
        MissingExtra: it is not.
    """
    if find_spec(package) is None:
        raise MissingExtra(what, package, extra)


def progress(items: Collection[Item], doing: str) -> Iterable[Item]:
    """The items, with a progress bar on standard error if that is a terminal, which is removed at the end."""
    console = Console(stderr=True)
    return track(items, doing, console=console, transient=True, disable=not console.is_terminal)
