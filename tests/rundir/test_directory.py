"""The run directory is one process's at a time, whatever others do at the same moment."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import UserError
from trainer.rundir import lock
from trainer.rundir.directory import RunDirectory


def test_one_at_a_time(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path / "run", unique=False)
    with pytest.raises(UserError, match=r"another process trains in .*/run: wait for it"):
        RunDirectory(tmp_path / "run", unique=False)
    first.release()
    RunDirectory(tmp_path / "run", unique=False).release()


def test_a_suggested_name_is_numbered(tmp_path: Path) -> None:
    names = [RunDirectory(tmp_path / "run", unique=True).path.name for _ in range(3)]
    assert names == ["run", "run_1", "run_2"]


def test_another_process_takes_the_name_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def too_late(path: Path, *args: Any, **options: Any) -> None:
        if path.name in ("run", "run_1"):
            os.mkdir(path)
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", too_late)
    assert RunDirectory(tmp_path / "run", unique=True).path == tmp_path / "run_2"


def test_what_is_unused_leaves_nothing(tmp_path: Path) -> None:
    for unique in (False, True):
        unused = RunDirectory(tmp_path / "some" / "where" / "run", unique=unique)
        unused.remove_if_unused()
        unused.release()
        assert list(tmp_path.iterdir()) == []
    used = RunDirectory(tmp_path / "some" / "run", unique=True)
    used.log("a word")
    used.remove_if_unused()
    used.release()
    assert (tmp_path / "some" / "run" / "run.log").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_its_lock_is_closed_before_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system keeps a file that is open in its directory, under another name."""
    rmdir = Path.rmdir

    def as_on_nfs(path: Path) -> None:
        opened = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
        if any(name.startswith(f"{path}/") for name in opened):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        rmdir(path)

    monkeypatch.setattr(Path, "rmdir", as_on_nfs)
    unused = RunDirectory(tmp_path / "run", unique=False)
    unused.remove_if_unused()
    unused.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opens_first", [False, True])
def test_it_is_taken_away_while_another_process_comes(
    opens_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = RunDirectory(tmp_path / "run", unique=False)
    opened = os.open

    def meanwhile(*args: Any) -> int:
        monkeypatch.setattr(os, "open", opened)
        file = opened(*args) if opens_first else None
        before.remove_if_unused()
        before.release()
        return file or opened(*args)

    monkeypatch.setattr(os, "open", meanwhile)
    now = RunDirectory(tmp_path / "run", unique=False)
    assert (tmp_path / "run" / lock.LOCK).exists()
    with pytest.raises(UserError, match="another process"):
        RunDirectory(tmp_path / "run", unique=False)
    now.release()


FORK = """
import os, sys, time
from pathlib import Path
from trainer.rundir.directory import RunDirectory

directory = RunDirectory(Path(sys.argv[1]), unique=False)
child = os.fork()
if child == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
os.kill(os.getpid(), 9)
"""


def test_forked_children_do_not_hold_it(tmp_path: Path) -> None:
    """As data workers, which live on for seconds when the trainer is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", FORK, str(tmp_path / "run")], stdout=subprocess.PIPE
    ) as killed:
        assert killed.stdout is not None
        child = int(killed.stdout.readline())
        killed.wait()
        try:
            RunDirectory(tmp_path / "run", unique=False).release()
        finally:
            os.kill(child, 9)


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    RunDirectory(tmp_path / "run", unique=False).release()
    err = capsys.readouterr().err
    assert err.startswith(
        f"warning: {tmp_path}/run/.lock cannot be locked (No locks available): nothing keeps"
    )
    assert err.count("\n") == 1


@pytest.mark.parametrize("path", ["/proc/run", "/dev/null/run", "FILE"])
@pytest.mark.parametrize("unique", [True, False])
def test_where_no_directory_can_be_made(path: str, unique: bool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made: "):
        RunDirectory(Path(path.replace("FILE", f"{tmp_path}/file/run")), unique=unique)
