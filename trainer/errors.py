"""The errors that a user can cause; each message is one line."""

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(Exception):
    """A mistake of the user's; the message says in one line what is wrong, where, and what would be right."""


class ConfigError(UserError):
    """An option is unknown, of the wrong type, out of range, or does not fit the others."""


class BuildError(ConfigError):
    """Before training, the code of a component or plugin raised something unforeseen, which is the ``__cause__``."""


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


class MachineError(Exception):
    """A disk, the memory or the network failed, which is not the user's mistake; the message is one line."""


def one_line(error: BaseException) -> str:
    """Returns the message of another library's error on one line."""
    return " ".join(str(error).split())


@contextmanager
def one_line_errors(what: str, *modules: str) -> Iterator[None]:
    """Makes one line of what the code of a component raises, which may fail in any way.

    Args:
        what, modules: as `build_error` takes them.

    Raises:
        BuildError: for any error but those of this module, and lack of memory.
    """
    try:
        yield
    except (UserError, MachineError, MemoryError):
        raise
    except Exception as error:
        raise build_error(what, error, *modules) from error


def build_error(what: str, error: Exception, *modules: str) -> BuildError:
    """The error that says in one line what failed, how, and where in a plugin.

    Args:
        what: failed, such as ``model=tiny cannot be built``.
        error: that was raised.
        modules: in which the code is; of a plugin's package, the innermost line that was running is named.
    """
    packages = {module.partition(".")[0] for module in modules} - {__package__}
    lines = [
        f"{frame.f_code.co_filename}:{number}"
        for frame, number in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] in packages
    ]
    hints = "; ".join([*lines[-1:], "HYDRA_FULL_ERROR=1 shows the traceback"])
    return BuildError(f"{what}: {type(error).__name__}: {one_line(error)} ({hints})")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint to append to an error: the nearest of the known names, then all of them."""
    known = sorted(known)
    folded = {k.lower(): k for k in known}
    close = [folded[match] for match in get_close_matches(name.lower(), folded, n=3, cutoff=0.6)]
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{hint} (known: {', '.join(known) or 'none'})"
