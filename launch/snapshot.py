"""A copy of the code as it is now: tracked files with their changes, new ones that git does not ignore, and plugins."""

import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from trainer.errors import UserError
from trainer.rundir.files import atomic_path
from trainer.rundir.provenance import CODE, MARK, git, source

PLUGINS = ".plugins"
"""In the copy: a numbered folder for each place that plugins were imported from, and `PATHS`."""

PATHS = "paths.json"
"""The folders, relative to the copy, in which their modules are found."""

MAX_BYTES = 2**30
"""Of the files of a plugin's repository or folder, which may be somebody's home directory."""


def take_snapshot(target: Path, plugins: Iterable[str] = ()) -> None:
    """Copies the code into a directory that only its owner may enter; it gets its name when it is complete.

    Args:
        target: the directory.
        plugins: names of modules that are imported already; those outside of the code are copied, too, with the git
            repository that they are in, or with their package, unless they are installed.

    Raises:
        UserError: the code is not in a git repository, or a plugin comes with too many files.
        OSError: a file cannot be copied.
    """
    with atomic_path(target) as part:
        part.mkdir(mode=0o700)
        copy_files(CODE, code_files(), part)
        places = dict.fromkeys(place_of(module) for module in plugins)
        paths = [copy_plugin(*place, part, number) for number, place in enumerate(places)]
        (part / PLUGINS).mkdir(exist_ok=True)
        (part / PLUGINS / PATHS).write_text(json.dumps([str(path) for path in paths if path is not None]))
        (part / MARK).write_text(json.dumps(source()))


def plugin_paths() -> list[str]:
    """In a copy: the folders in which the copied plugins are found, before all others; elsewhere none."""
    file = CODE / PLUGINS / PATHS
    return [str(CODE / path) for path in json.loads(file.read_text())] if file.exists() else []


def copy_files(root: Path, names: Iterable[str], target: Path) -> None:
    """Copies files, given by their paths relative to a root, to the same paths in a target."""
    for name in names:
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, copy, follow_symlinks=False)


def code_files() -> list[str]:
    """The files to copy, as paths relative to `CODE`.

    Raises:
        UserError: the code is not in a git repository.
    """
    files = git_files(CODE)
    if f"{Path(__file__).parent.name}/{Path(__file__).name}" not in files:
        raise UserError(
            f"launch.snapshot=true copies what git tracks, but {CODE} is not in a git repository: "
            f"set launch.snapshot=false to run the code in place"
        )
    return files


def git_files(root: Path) -> list[str]:
    """What git tracks or does not ignore in a directory, without submodules and files that are tracked but deleted."""
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", where=root) or ""
    names = dict.fromkeys(name for name in listed.split("\0") if name)
    return [name for name in names if os.path.lexists(root / name) and not (root / name).is_dir()]


def place_of(module: str) -> tuple[Path, Path]:
    """Where the outermost package of an imported module is found: the folder on Python's path, and its file within."""
    outermost = sys.modules[module.partition(".")[0]]
    paths = list(getattr(outermost, "__path__", []))
    file = Path(paths[0] if paths else str(outermost.__file__)).absolute()
    return file.parent, Path(file.name)


def copy_plugin(folder: Path, name: Path, target: Path, number: int) -> Path | None:
    """Copies a plugin.

    Args:
        folder, name: as `place_of` returns them.
        target: the copy of the code.
        number: of the plugin's folder in the copy.

    Returns:
        Where its modules are found, relative to the copy; None if they need no copy.

    Raises:
        UserError: there is too much to be copied.
    """
    if {"site-packages", "dist-packages"} & set(folder.parts):
        return None
    if folder.is_relative_to(CODE) and (target / folder.relative_to(CODE) / name).exists():
        return None
    root = Path(git("rev-parse", "--show-toplevel", where=folder) or folder)
    within = folder.resolve().relative_to(root.resolve()) / name
    names = git_files(root)
    if not any(Path(file).is_relative_to(within) for file in names):  # not in a repository, or ignored there
        root, within = folder, name
        files = (folder / name).rglob("*") if (folder / name).is_dir() else folder.glob("*.py")
        names = [str(file.relative_to(folder)) for file in files if is_source(file)]
    size = sum((root / file).lstat().st_size for file in names)
    if size > MAX_BYTES:
        raise UserError(
            f"launch.snapshot=true copies plugins, but {name} in {root} comes with {size / 2**30:.1f} GiB: "
            f"give it a git repository of its own, or set launch.snapshot=false to run the code in place"
        )
    place = Path(PLUGINS, str(number))
    copy_files(root, names, target / place)
    return place / within.parent


def is_source(file: Path) -> bool:
    """Whether a file is worth a copy."""
    return file.is_file() and "__pycache__" not in file.parts
