"""Downloads a torchvision data set, completely or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trainer.errors import DataError, one_line


def download(dataset: Callable[..., Any], root: Path, folder: str) -> None:
    """Lets torchvision download a set into root/folder, which is there only once it is complete.

    Several processes may do it at a time: each fetches its own copy, and the first one's stays.

    Args:
        dataset: a torchvision data set, called with ``root`` and ``download``.
        root: the directory of data sets.
        folder: what the data set makes of its root.

    Raises:
        DataError: the network or the directory does not allow it.
    """
    target = root / folder
    nearest = next(path for path in (root, *root.absolute().parents) if path.is_dir())
    try:
        with TemporaryDirectory(dir=nearest, prefix=".download-") as temporary:
            dataset(temporary, download=True)
            root.mkdir(parents=True, exist_ok=True)
            try:
                os.rename(Path(temporary, folder), target)
            except OSError:
                if not target.is_dir():  # or else another process was faster
                    raise
    except (OSError, RuntimeError) as error:
        raise DataError(f"data.download failed ({one_line(error)}): put the set into {target}") from None
