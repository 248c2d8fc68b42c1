"""A copy of the code as it is now: tracked files with their changes, and new files that git does not ignore."""

import json
import os
import shutil
from pathlib import Path

from trainer.errors import UserError
from trainer.rundir.files import atomic_path
from trainer.rundir.provenance import CODE, MARK, git, source


def take_snapshot(target: Path) -> None:
    """Copies the code into a directory that only its owner may enter; it gets its name when it is complete.

    Raises:
        UserError: the code is not in a git repository.
        OSError: a file cannot be copied.
    """
    with atomic_path(target) as part:
        part.mkdir(mode=0o700)
        for name in code_files():
            copy = part / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CODE / name, copy, follow_symlinks=False)
        (part / MARK).write_text(json.dumps(source()))


def code_files() -> list[str]:
    """The files to copy, as paths relative to `CODE`, without submodules and files that are tracked but deleted.

    Raises:
        UserError: the code is not in a git repository.
    """
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard") or ""
    names = dict.fromkeys(name for name in listed.split("\0") if name)
    files = [name for name in names if os.path.lexists(CODE / name) and not (CODE / name).is_dir()]
    if f"{Path(__file__).parent.name}/{Path(__file__).name}" not in files:
        raise UserError(
            f"launch.snapshot=true copies what git tracks, but {CODE} is not in a git repository: "
            f"set launch.snapshot=false to run the code in place"
        )
    return files
