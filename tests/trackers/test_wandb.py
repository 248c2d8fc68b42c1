"""What is W&B's own: its files, and a server that is played. The rest is in test_every_tracker.py."""

import os
import uuid
from types import SimpleNamespace

import pytest

from tests.monitor.fake import loss, monitors, play
from tests.trackers.stores import WandbStore

pytest.importorskip("wandb")
pytest.importorskip("wandb.sdk.internal.datastore", reason="wandb has no reader of its files any more")

import wandb
from wandb.sdk.internal.datastore import DataStore

from trainer.trackers import wandb as tracker
from trainer.trackers.base import TrackedRun
from trainer.trackers.wandb_files import records

LOSSES = [(step, loss(step)) for step in range(5, 61, 5)]


@pytest.fixture
def store(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return WandbStore(tmp_path)


def test_records_of_all_lengths_as_the_package_writes_them(tmp_path):
    log = DataStore()
    log.open_for_write(str(tmp_path / "log"))
    written = [
        os.urandom(length) for length in (0, 1, 32747, 5, 0, 70000, 32761, 32754, 0, 9)
    ]  # some end near a block
    for record in written:
        log._write_data(record)
    log.close()
    whole = (tmp_path / "log").read_bytes()
    assert [*records(whole)] == written
    assert [*records(whole[:-1])] == written[:-1]
    assert [*records(whole[:40000])] == written[:5]
    damaged = whole[:20] + bytes([whole[20] ^ 1]) + whole[21:]
    assert [*records(damaged)] == written[:1]
    assert [*records(b"")] == []


def test_in_a_slurm_job_the_run_stays_in_its_directory(store, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    told = monitors(store.folder.parent, "jsonl", "wandb")
    told.finish("finished", play(told, 1, 60))
    [found] = store.runs()
    assert found.points["train/loss"] == LOSSES


def test_a_kill_loses_what_the_package_had_not_written(store, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    told = monitors(store.folder.parent, "jsonl", "wandb")
    play(told, 1, 30)
    state = told.state_dict()
    told.finish("preempted", play(told, 31, 48))
    [file] = store.folder.glob("offline-run-*/run-*.wandb")
    os.truncate(file, file.stat().st_size * 3 // 4)
    [cut] = store.runs()
    told = monitors(store.folder.parent, "jsonl", "wandb", resumed_step=30)
    told.load_state_dict(state)
    told.finish("finished", play(told, 31, 60))
    [found] = store.runs()
    left = cut.points["train/loss"]
    assert 0 < len(left) < 9
    assert found.points["train/loss"] == left + [point for point in LOSSES if point[0] > max(30, left[-1][0])]


class Server:
    """W&B's client and its server, as far as the tracker calls them."""

    path, resumed = "team/project/id", True

    def __init__(self, rows):
        self.rows, self.asked, self.code = rows, {}, None
        self.log = rows.append

    def init(self, **asked):
        self.asked = asked
        return self

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def finish(self, exit_code):
        self.code = exit_code

    def api(self, timeout):
        def run(path):
            assert path == self.path
            return SimpleNamespace(scan_history=lambda use_cache: iter([*self.rows]))

        return SimpleNamespace(run=run)


def test_online_the_server_is_asked_what_it_has(tmp_path, monkeypatch):
    server = Server([{"step": 5, "seconds": 2.5, "a": 1.0, "b": None}, {"sys": 3}])
    monkeypatch.setattr(wandb, "init", server.init)
    monkeypatch.setattr(wandb, "Api", server.api)
    monkeypatch.setenv("WANDB_MODE", "online")
    run = TrackedRun(tmp_path, "name", {"seed": 3})
    opened = tracker.Wandb(run, None, False)
    assert (server.asked["resume"], server.asked["id"]) == ("allow", run.identity)
    opened.log(5, 2.5, {"a": 1.0, "b": 2.0})
    opened.log(5, 2.5, {"a": 1.0, "b": 2.0})
    opened.log(4, 2.0, {"a": 0.5})
    opened.close("finished")
    assert server.rows[2:] == [{"step": 5, "seconds": 2.5, "b": 2.0}, {"step": 4, "seconds": 2.0, "a": 0.5}]
    assert server.code == 0


def test_the_id_of_a_checkpoint_comes_first(tmp_path, monkeypatch):
    server = Server([])
    monkeypatch.setattr(wandb, "init", server.init)
    monkeypatch.setattr(wandb, "Api", server.api)
    monkeypatch.setenv("WANDB_MODE", "online")
    id = uuid.uuid4().hex
    assert tracker.Wandb(TrackedRun(tmp_path, "name", {}), id, False).id == id == server.asked["id"]
