"""The copy of the code against what git would say of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from launch import snapshot
from trainer.errors import UserError
from trainer.rundir import provenance
from trainer.rundir.provenance import MARK


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    code = tmp_path / "code"
    (code / "launch").mkdir(parents=True)
    (code / "launch" / "snapshot.py").write_text("tracked = 1\n")
    (code / "script").write_text("#!/bin/sh\n")
    (code / "script").chmod(0o755)
    (code / "gone.py").write_text("deleted before the snapshot\n")
    (code / ".gitignore").write_text("data/\n")
    for module in (snapshot, provenance):
        monkeypatch.setattr(module, "CODE", code)
    git(code, "init", "-q")
    git(code, "add", "-A")
    git(code, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "first")
    return code


def git(where: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=where, check=True, capture_output=True, text=True).stdout


def test_what_is_tracked_with_its_changes_and_what_is_new(repository: Path, tmp_path: Path) -> None:
    (repository / "launch" / "snapshot.py").write_text("tracked = 2\n")
    (repository / "gone.py").unlink()
    (repository / "neu ä.py").write_text("new\n")
    (repository / "data").mkdir()
    (repository / "data" / "large.bin").write_text("ignored\n")
    (repository / "link").symlink_to("script")
    snapshot.take_snapshot(tmp_path / "copy")
    copied = {
        str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()
    }
    plugins = f"{snapshot.PLUGINS}/{snapshot.PATHS}"
    assert copied == {"launch/snapshot.py", "script", ".gitignore", "neu ä.py", "link", MARK, plugins}
    assert (tmp_path / "copy" / "launch" / "snapshot.py").read_text() == "tracked = 2\n"
    assert (tmp_path / "copy" / "script").stat().st_mode & 0o111
    assert (tmp_path / "copy" / "link").is_symlink()
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700
    source = json.loads((tmp_path / "copy" / MARK).read_text())
    assert source["git_commit"] == git(repository, "rev-parse", "HEAD").strip()
    assert "+tracked = 2" in source["git_diff"]


def test_bytes_that_are_no_text_come_along(repository: Path, tmp_path: Path) -> None:
    """As the name of a file, and in an uncommitted change."""
    (repository / os.fsdecode(b"\xff.py")).touch()
    (repository / "script").write_bytes(b"echo M\xe4nnlein\n")
    snapshot.take_snapshot(tmp_path / "copy")
    assert (tmp_path / "copy" / os.fsdecode(b"\xff.py")).exists()
    source = json.loads((tmp_path / "copy" / MARK).read_text())
    assert os.fsencode(source["git_diff"]).endswith(b"+echo M\xe4nnlein")


def imported(monkeypatch: pytest.MonkeyPatch, file: Path, text: str = "") -> str:
    """The name of a module that is imported from a new file; only its outermost package is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    name = file.stem
    module = ModuleType(name)
    if name == "__init__":
        name = file.parent.name
        module.__path__ = [str(file.parent)]
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, name, module)
    return name


def copies(copy: Path) -> tuple[list[str], set[str]]:
    """The paths of the copied plugins, and their files."""
    folder = copy / snapshot.PLUGINS
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return json.loads((folder / snapshot.PATHS).read_text()), files - {snapshot.PATHS}


def test_plugins_come_along(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_git = imported(monkeypatch, tmp_path / "theirs" / "src" / "in_git" / "__init__.py")
    (tmp_path / "theirs" / "other.py").touch()
    (tmp_path / "theirs" / ".gitignore").write_text("*.bin\n")
    (tmp_path / "theirs" / "large.bin").touch()
    git(tmp_path / "theirs", "init", "-q")
    package = imported(monkeypatch, tmp_path / "loose" / "package" / "__init__.py")
    (tmp_path / "loose" / "package" / "__pycache__").mkdir()
    (tmp_path / "loose" / "package" / "__pycache__" / "x.pyc").touch()
    (tmp_path / "loose" / "package" / "data.txt").touch()
    (tmp_path / "loose" / "not_of_the_package.py").touch()
    file = imported(monkeypatch, tmp_path / "alone" / "single.py")
    (tmp_path / "alone" / "helper.py").touch()
    (tmp_path / "alone" / "holiday.jpg").touch()
    installed = imported(monkeypatch, tmp_path / "site-packages" / "installed.py")
    ours = imported(monkeypatch, repository / "ours.py")
    ignored = imported(monkeypatch, repository / "data" / "ignored.py")
    names = [f"{in_git}.part", f"{in_git}.another", package, file, installed, ours, ignored]
    snapshot.take_snapshot(tmp_path / "copy", names)
    paths, files = copies(tmp_path / "copy")
    assert paths == [".plugins/0/src", ".plugins/1", ".plugins/2", ".plugins/5"]
    assert files == {
        *("0/src/in_git/__init__.py", "0/other.py", "0/.gitignore"),
        *("1/package/__init__.py", "1/package/data.txt"),
        *("2/single.py", "2/helper.py"),
        "5/ignored.py",
    }
    monkeypatch.setattr(snapshot, "CODE", tmp_path / "copy")
    assert snapshot.plugin_paths() == [str(tmp_path / "copy" / path) for path in paths]


def test_a_plugin_with_too_many_files(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = imported(monkeypatch, tmp_path / "home" / "single.py", "x = 1\n")
    monkeypatch.setattr(snapshot, "MAX_BYTES", 3)
    with pytest.raises(UserError, match=r"copies plugins, but single\.py in .* comes with 0\.0 GiB"):
        snapshot.take_snapshot(tmp_path / "copy", [name])
    assert not (tmp_path / "copy").exists()


def test_a_copy_that_fails_has_not_its_name(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot.shutil, "copy2", fail)
    with pytest.raises(OSError, match="No space left"):
        snapshot.take_snapshot(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_code_outside_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (snapshot, provenance):
        monkeypatch.setattr(module, "CODE", tmp_path)
    with pytest.raises(UserError, match=r"launch\.snapshot=false"):
        snapshot.take_snapshot(tmp_path / "copy")
