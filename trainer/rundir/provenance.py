"""Provenance of a run: commit and uncommitted changes of its code, versions, host and devices."""

import json
import os
import platform
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

CODE = Path(__file__).resolve().parents[2]
"""The directory of the packages."""

MARK = ".copied.json"
"""In a complete copy of the code: the commit and the changes that it was made from."""


def source() -> dict[str, str | None]:
    """``git_commit`` and ``git_diff`` of the code; None where it is not in a git repository."""
    if (CODE / MARK).exists():
        return json.loads((CODE / MARK).read_text())
    return {"git_commit": git("rev-parse", "HEAD"), "git_diff": git("diff", "HEAD")}


def git(*arguments: str, where: Path | None = None) -> str | None:
    """The output of a git command, by default on the code; None where git fails, as outside of a repository.

    Names of files and lines of a diff may be any bytes: those that the locale cannot decode become surrogates.
    """
    try:
        done = subprocess.run(["git", *arguments], cwd=where or CODE, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return os.fsdecode(done.stdout).strip() if done.returncode == 0 else None


def environment() -> dict[str, Any]:
    """Versions, commit and uncommitted changes, host and devices: what goes into environment.json."""
    import torch  # takes seconds, and is not needed to read run directories

    cuda = torch.cuda.is_available()
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "cuda": torch.version.cuda if cuda else None,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **source(),
    }
