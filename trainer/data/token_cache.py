"""The tokens of a text on the disk, so that they are made once for all ranks and runs that train on it.

They lie in ``adafisher-trainer/tokens`` below ``$XDG_CACHE_HOME`` (``~/.cache``), in files named by the text and the
tokenizer: nothing in there is ever out of date, and all of it may be deleted at any time.
"""

import fcntl
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from trainer.errors import one_line
from trainer.rundir.files import atomic_path

CACHED_FROM = 2**20
"""Characters: shorter texts are tokenized in a second or so."""


def tokens_of(text: str, identity: str, tokenize: Callable[[str], np.ndarray]) -> np.ndarray:
    """The tokens of a text, by the cache if it is a long one.

    One process makes them, while others wait that ask for the same. A folder that cannot be written is a warning.

    Args:
        text: to be tokenized.
        identity: names the tokenizer: another one has another name.
        tokenize: makes the tokens, integers [L].
    """
    if len(text) < CACHED_FROM:
        return tokenize(text)
    path = cache_folder() / f"{_digest(identity, text)}.npz"
    if (found := _read(path)) is not None:
        return found
    try:
        with _locked(path):
            if (found := _read(path)) is not None:  # made while this process waited
                return found
            tokens = tokenize(text)
            _write(path, tokens)
            return tokens
    except _NoLock as error:
        _warn(path, error)
        return tokenize(text)


def cache_folder() -> Path:
    """Where the tokens are."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "adafisher-trainer", "tokens")


def _digest(identity: str, text: str) -> str:
    digest = hashlib.sha256(identity.encode())
    digest.update(b"\0")
    digest.update(text.encode())
    return digest.hexdigest()


def _read(path: Path) -> np.ndarray | None:
    """What a file holds, whose checksum the zip format has; None if there is none, or none that is whole.

    It is read, not mapped into memory, so that whoever clears the cache ends no run.
    """
    try:
        with np.load(path) as content:
            tokens: np.ndarray = content["tokens"]
            return tokens
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, BadZipFile) as error:
        print(f"warning: {path} is damaged and made anew: {one_line(error)}", file=sys.stderr)
        return None


def _write(path: Path, tokens: np.ndarray) -> None:
    try:
        with atomic_path(path) as part, part.open("wb") as file:
            np.savez(file, tokens=tokens)
    except OSError as error:
        _warn(path, error)


def _warn(path: Path, error: Exception) -> None:
    print(
        f"warning: {path.parent} keeps no tokens ({one_line(error)}), so that each rank of each run makes them: "
        "set XDG_CACHE_HOME to a folder that can be written",
        file=sys.stderr,
    )


class _NoLock(Exception):
    """Nobody can wait for anybody here."""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A context in which one process at a time is; the lock ends with the process, and its empty file stays.

    Raises:
        _NoLock: the folder cannot be written, or its file system has no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _NoLock(one_line(error)) from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise _NoLock(one_line(error)) from None
        yield
    finally:
        os.close(file)
