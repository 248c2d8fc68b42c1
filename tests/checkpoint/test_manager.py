"""Checkpoints that are written while training goes on."""

import copy
import threading
from pathlib import Path

import pytest

from tests.training.helpers import parts_of
from tests.training.kill_and_resume import differences
from trainer.checkpoint import storage, writing
from trainer.checkpoint.manager import CheckpointManager
from trainer.checkpoint.reading import read
from trainer.config.schema import CheckpointOptions
from trainer.distributed.ranks import SINGLE_PROCESS
from trainer.training.step import TrainStep

IN_BACKGROUND = CheckpointOptions(keep_last=1, async_=True)


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of("loop.ema=0.9")
    train_step = TrainStep(parts)
    train_step()
    saved = copy.deepcopy(parts.state.tensors())
    go_on, write = threading.Event(), writing.write

    def wait_and_write(*arguments: object) -> Path:
        assert go_on.wait(60)
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "write", wait_and_write)
    checkpoints = CheckpointManager(tmp_path, SINGLE_PROCESS, IN_BACKGROUND)
    checkpoints.save(parts.state, monitors={}, best=True)
    for _ in range(3):
        train_step()
    assert storage.list_checkpoints(tmp_path) == []
    go_on.set()
    checkpoints.wait()
    assert [c.name for c in storage.list_checkpoints(tmp_path)] == ["step_00000001"]
    assert storage.best(tmp_path) == "step_00000001"
    found = read(tmp_path / "step_00000001")
    assert differences(found["model"], dict(saved["model"])) == []
    assert differences(found["ema"], saved["ema"]) == []
    assert differences(found["optimizer"]["state"], saved["optimizer"]["state"]) == []


def test_an_error_in_the_background_is_raised_at_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of()

    def fail(*arguments: object) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(writing, "write", fail)
    checkpoints = CheckpointManager(tmp_path, SINGLE_PROCESS, IN_BACKGROUND)
    checkpoints.save(parts.state, monitors={})
    parts.counters.step += 1
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(parts.state, monitors={})
