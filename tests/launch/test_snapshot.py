"""The copy of the code against what git would say of it."""

import json
import subprocess
from pathlib import Path

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
    assert copied == {"launch/snapshot.py", "script", ".gitignore", "neu ä.py", "link", MARK}
    assert (tmp_path / "copy" / "launch" / "snapshot.py").read_text() == "tracked = 2\n"
    assert (tmp_path / "copy" / "script").stat().st_mode & 0o111
    assert (tmp_path / "copy" / "link").is_symlink()
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700
    source = json.loads((tmp_path / "copy" / MARK).read_text())
    assert source["git_commit"] == git(repository, "rev-parse", "HEAD").strip()
    assert "+tracked = 2" in source["git_diff"]


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
