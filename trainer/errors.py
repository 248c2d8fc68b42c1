"""The errors that a user can cause; each message is one line."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake of the user's; the message says in one line what is wrong, where, and what would be right."""


class ConfigError(UserError):
    """An option is unknown, of the wrong type, out of range, or does not fit the others."""


class MissingExtra(UserError):
    """A component needs a package that is not installed.

    Args:
        what: the option that needs it, such as ``model=timm``.
        package: its name on PyPI.
        extra: the extra of this project that installs it.
    """

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} needs the package {package}: pip install '.[{extra}]'")


class DataError(UserError):
    """A data set is not where the config says, or is not what it should be."""


class WorkerKilled(DataError):
    """A signal ended a data worker, as where memory runs out: the same command may well go on from a checkpoint."""


class CheckpointError(UserError):
    """A checkpoint does not exist, cannot be read, or belongs to another model."""


def one_line(error: BaseException) -> str:
    """Returns the message of another library's error on one line."""
    return " ".join(str(error).split())


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint to append to an error: the nearest of the known names, then all of them."""
    known = sorted(known)
    folded = {k.lower(): k for k in known}
    close = [folded[match] for match in get_close_matches(name.lower(), folded, n=3, cutoff=0.6)]
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{hint} (known: {', '.join(known) or 'none'})"
