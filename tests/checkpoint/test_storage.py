"""Checkpoints on disk: found, refused, restored."""

import errno
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.training.helpers import parts_of
from trainer.checkpoint import storage
from trainer.checkpoint.manager import CheckpointManager
from trainer.checkpoint.manifest import MANIFEST
from trainer.checkpoint.restore import restore
from trainer.checkpoint.state import Counters
from trainer.cli.train import main
from trainer.distributed.ranks import SINGLE_PROCESS
from trainer.errors import CheckpointError, UserError
from trainer.rundir.status import write_status

TINY = ["model.widths=[4]", "loop.max_steps=2", "data.batch_size=64"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("storage") / "run"
    assert main([*TINY, f"hydra.run.dir={path}"]) == 0
    return path


def test_a_run_or_one_of_its_checkpoints(run: Path, tmp_path: Path) -> None:
    [newest] = storage.list_checkpoints(run / "checkpoints")
    assert storage.find_checkpoints(run) == [newest]
    assert storage.find_checkpoints(newest) == [newest]
    assert storage.find_checkpoints(run / "checkpoints" / storage.BEST) == [newest]
    with pytest.raises(
        CheckpointError, match=f"^{tmp_path} has no checkpoints: give a run directory or one of"
    ):
        storage.find_checkpoints(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"^checkpoint\.resume=/none does not exist: give a run directory"
    ):
        storage.find_checkpoints(Path("/none"), "checkpoint.resume=")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("status.json", None),
        ("status.json", 2),
        ("checkpoints/step_00000002/manifest.json", None),
        ("checkpoints/step_00000002/manifest.json", 1),
    ],
)
def test_another_format_is_refused_in_one_line(
    name: str, written: int | None, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    write_status(copy, "preempted", step=2)
    record = json.loads((copy / name).read_text())
    del record["format"]
    record.pop("crc32", None)  # which manifests of format 1 had not
    (copy / name).write_text(json.dumps({**record, "format": written} if written else record))
    capsys.readouterr()
    assert main([*TINY, "loop.max_steps=4", f"hydra.run.dir={copy}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        f"error: {copy / name} has {f'format {written}' if written else 'no format number'}, but"
    )
    assert err.count("\n") == 1


def test_counters_of_another_version_are_refused() -> None:
    saved = asdict(Counters(step=3, best=0.5))
    assert Counters.of(saved) == Counters(step=3, best=0.5)
    with pytest.raises(CheckpointError, match="counters are of another version: odd is in one of them only"):
        Counters.of({**saved, "odd": 1})
    del saved["best_step"]
    with pytest.raises(CheckpointError, match="best_step is in one of them only"):
        Counters.of(saved)


def test_a_refused_checkpoint_changes_nothing(tmp_path: Path) -> None:
    parts = parts_of(*TINY)
    checkpoints = CheckpointManager(tmp_path, SINGLE_PROCESS, parts.config.checkpoint)
    checkpoints.save(parts.state, monitors={"sink": 1})
    [path] = storage.list_checkpoints(tmp_path)
    assert restore([path], parts.state, same_run=True).monitors == {"sink": 1}
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({"format": 1, "step": 0, "files": manifest["files"]}))
    with pytest.raises(UserError, match="format 1"):
        restore([path], parts.state, same_run=True)
    assert path.exists()  # it is not taken for a damaged one


def test_a_run_that_keeps_no_best_marks_none_when_it_goes_on(tmp_path: Path) -> None:
    line = [*TINY, "checkpoint.keep_best=false", "checkpoint.keep_last=9", "loop.eval_every=1"]
    line += ["checkpoint.every_steps=1", f"hydra.run.dir={tmp_path / 'run'}"]
    assert main(line) == 0
    assert main([*line, "loop.max_steps=3"]) == 0
    assert storage.best(tmp_path / "run" / "checkpoints") is None


def test_what_cannot_be_removed_is_left_to_the_next_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, which keeps a file that another process has open."""
    for step in (1, 2, 3):
        storage.path_of(tmp_path, step).mkdir()
    rmtree = shutil.rmtree

    def busy(path: Path, ignore_errors: bool = False) -> None:
        if path.exists() and not ignore_errors:
            raise OSError(errno.EBUSY, "Device or resource busy", f"{path}/.nfs01")

    monkeypatch.setattr(shutil, "rmtree", busy)
    storage.remove_old(tmp_path, keep_last=1)
    assert [c.name for c in storage.list_checkpoints(tmp_path)] == ["step_00000003"]
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    storage.remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]
