"""Checkpoints are cut short, changed, unreadable, half replaced: what is whole goes on, what is lost is told."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint import FileSystemReader

from tests.abuse.damage import changes
from tests.abuse.runs import checkpoints, content, go, refusal, restate, stopped
from tests.training.kill_and_resume import compare
from trainer.checkpoint import manifest, storage
from trainer.checkpoint.manifest import MANIFEST
from trainer.export.__main__ import main as export


def cut_short(checkpoint: Path) -> None:
    for file in checkpoint.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_all_are_damaged_and_the_command_is_repeated(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second start must not take the directory, in which no checkpoint is found any more, for a new run's."""
    stopped(run)
    records = (run / "metrics.jsonl").read_bytes()
    for checkpoint in checkpoints(run):
        cut_short(checkpoint)
    capsys.readouterr()
    assert f"every checkpoint in {run / 'checkpoints'} is damaged" in refusal(capsys, go(run))
    for _ in range(2):
        before = content(run)
        assert f"the checkpoints of the run in {run}, which had reached step" in refusal(capsys, go(run))
        assert content(run) == before
    assert (run / "metrics.jsonl").read_bytes() == records


@pytest.mark.parametrize("state", ["preempted", "failed", "running"])
def test_all_are_gone(state: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    restate(run, state=state)
    (run / "checkpoints").rename(run.parent / "elsewhere")
    before = content(run)
    capsys.readouterr()
    assert refusal(capsys, go(run)) == (
        f"error: the checkpoints of the run in {run}, which had reached step 6, are gone: "
        f"choose another hydra.run.dir to start anew\n"
    )
    assert content(run) == before


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, os.strerror(errno.EIO)),
        OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
        MemoryError(),
    ],
    ids=repr,
)
def test_an_error_of_the_machine_is_no_damage(
    error: Exception,
    run: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither where checksums are computed nor where tensors are read."""

    def fail(*_: Any, **__: Any) -> None:
        raise error

    stopped(run)
    before = content(run)
    for place in ((manifest, "crc32"), (FileSystemReader, "read_data")):
        with monkeypatch.context() as patch:
            patch.setattr(*place, fail)
            capsys.readouterr()
            assert go(run) == 1
            err = capsys.readouterr().err
            assert err.startswith(f"crashed: {checkpoints(run)[0]} cannot be read")
            assert err.count("\n") == 1
            assert content(run) == before
            assert export([str(run)]) == 1
            assert capsys.readouterr().err.startswith("crashed: ")
    assert go(run) == 0
    assert compare(run, finished) == []


def test_a_bit_flips_in_a_weight(run: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest, before = checkpoints(run)[:2]
    data = next(newest.glob("*.distcp"))
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 64
    data.write_bytes(content)
    assert export([str(newest)]) == 2
    assert f"{newest} is damaged: the checksum of {data.name} is another" in capsys.readouterr().err
    assert go(stopped(run)) == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert f"{newest} is damaged and is skipped: the checksum of {data.name} is another" in said
    assert f"going on from {before}" in said
    assert compare(run, finished) == []


def test_a_hundred_changes_of_a_byte(run: Path) -> None:
    """Over all files of a checkpoint, the manifest among them: none is loaded."""
    assert {what for _, what in changes(checkpoints(run)[0], 100, seed=0)} == {"skipped"}


@pytest.mark.parametrize("text", ["[]", "null", "", "{", '{"files": 1}', '{"files": {"a": 1}}', "[" * 10_000])
def test_a_manifest_that_is_something_else(
    text: str, run: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest, before = checkpoints(run)[:2]
    (newest / MANIFEST).write_text(text)
    code = go(stopped(run))
    if text == '{"files": {"a": 1}}':  # of another version, as far as one can tell
        assert code == 2
        assert "has no format number" in capsys.readouterr().err
        return
    assert code == 0
    assert f"going on from {before}" in capsys.readouterr().out.replace("\n", "")
    assert compare(run, finished) == []


def test_the_same_step_is_damaged_again(run: Path, finished: Path) -> None:
    for _ in range(3):
        cut_short(checkpoints(run)[0])
        assert go(stopped(run)) == 0
    names = [path.name for path in storage.list_damaged(run / "checkpoints")]
    assert names == ["damaged_step_00000006", "damaged_step_00000006_2", "damaged_step_00000006_3"]
    assert compare(run, finished) == []


def test_a_kill_between_the_two_renames_of_a_replacement(
    run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = checkpoints(run)[0]
    with pytest.raises(KeyboardInterrupt), storage.replaced(newest):
        raise KeyboardInterrupt  # where a kill would come
    assert checkpoints(run)[0] != newest
    assert go(stopped(run)) == 0
    assert compare(run, finished) == []
    with storage.replaced(newest):
        newest.mkdir()
        (newest / "new").touch()
    assert [file.name for file in newest.iterdir()] == ["new"]
    assert list(newest.parent.glob(".step*")) == []


def test_steps_of_nine_digits_are_numbers(tmp_path: Path) -> None:
    for step in (99_999_990, 100_000_000, 7):
        storage.path_of(tmp_path, step).mkdir()
    assert [path.name for path in storage.list_checkpoints(tmp_path)][:2] == [
        "step_100000000",
        "step_99999990",
    ]
    storage.remove_old(tmp_path, keep_last=1)
    assert [path.name for path in storage.list_checkpoints(tmp_path)] == ["step_100000000"]
