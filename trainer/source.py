"""Which code runs: its directory, commit and uncommitted changes."""

import json
import subprocess
from pathlib import Path

CODE = Path(__file__).resolve().parent.parent
"""The directory of the packages."""

MARK = ".copied.json"
"""In a copy of the code that is whole: commit and changes that it was made of."""


def source() -> dict[str, str | None]:
    """Commit and changes of the code; None where it is not in a git repository."""
    if (CODE / MARK).exists():
        return json.loads((CODE / MARK).read_text())
    return {"git_commit": git("rev-parse", "HEAD"), "git_diff": git("diff", "HEAD")}


def git(*arguments: str) -> str | None:
    """What git says of the code; None where it is not in a repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=CODE, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
