"""What the commands beside training share: mistakes in one line, progress bars."""

from argparse import ArgumentParser
from collections.abc import Collection, Iterable
from typing import NoReturn, TypeVar

from rich.console import Console
from rich.progress import track

from trainer.errors import ConfigError

Item = TypeVar("Item")


class Parser(ArgumentParser):
    """Raises ConfigError for what argparse would print its usage and exit for."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def progress(items: Collection[Item], doing: str) -> Iterable[Item]:
    """The items, with a bar on standard error if that is a terminal; it goes when they are through."""
    console = Console(stderr=True)
    return track(items, doing, console=console, transient=True, disable=not console.is_terminal)
