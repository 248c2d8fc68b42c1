"""What trackers have stored: read by MLflow's client, from trackio's SQLite file, by W&B's reader of its files."""

import json
import os
import sqlite3
from collections import defaultdict
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from trainer.trackers.base import PROJECT

os.environ["WANDB_ERROR_REPORTING"] = "false"  # read at the import of wandb
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@dataclass
class Stored:
    """A run in a tracker."""

    id: str
    name: str = ""
    state: str = ""
    """finished, failed, or stopped where it may go on."""
    options: dict = field(default_factory=dict)
    points: dict = field(default_factory=lambda: defaultdict(list))
    """By name: (step, value), as they came."""


class MlflowStore:
    """A database in a folder."""

    name = "mlflow"

    def __init__(self, folder: Path):
        pytest.importorskip("mlflow")
        pytest.importorskip("sqlalchemy")
        from mlflow.tracking import MlflowClient

        self.variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        self.client = MlflowClient(self.variables["MLFLOW_TRACKING_URI"])
        self.gone = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}

    def gives_up_soon(self, monkeypatch):
        return nullcontext()

    def runs(self) -> list[Stored]:
        found = self.client.search_runs([self.client.get_experiment_by_name(PROJECT).experiment_id])
        return [self.stored(run) for run in found]

    def stored(self, run) -> Stored:
        states = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}
        histories = {name: self.client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        points = {name: [(p.step, p.value) for p in history] for name, history in histories.items()}
        state = states.get(run.info.status, run.info.status)
        return Stored(run.info.run_id, run.info.run_name, state, run.data.params, points)


class TrackioStore:
    """A SQLite file in a folder."""

    name = "trackio"

    def __init__(self, folder: Path):
        pytest.importorskip("trackio", reason="trackio is tested with an older pillow, see .ci/run")
        self.folder = folder / "trackio"
        self.variables = {"TRACKIO_DIR": str(self.folder)}
        self.gone = {"TRACKIO_DIR": "/dev/null/trackio"}

    def gives_up_soon(self, monkeypatch):
        return nullcontext()

    def query(self, text: str) -> list[tuple]:
        with closing(sqlite3.connect(self.folder / f"{PROJECT}.db")) as database:
            return database.execute(text).fetchall()

    def runs(self) -> list[Stored]:
        found = {id: Stored(id) for (id,) in self.query("SELECT DISTINCT run_id FROM metrics")}
        for id, name, step, values in self.query("SELECT run_id, run_name, step, metrics FROM metrics"):
            found[id].name = name
            for metric, value in json.loads(values).items():
                found[id].points[metric].append((step, float(value)))
        for id, config in self.query("SELECT run_id, config FROM configs"):
            found[id].options = {option: str(value) for option, value in json.loads(config).items()}
            state = found[id].options.pop("state")
            found[id].state = {"preempted": "stopped"}.get(state, state)
        return list(found.values())


class WandbStore:
    """The files of offline runs in the directory of a run."""

    name = "wandb"

    def __init__(self, folder: Path):
        pytest.importorskip("wandb")
        pytest.importorskip(
            "wandb.sdk.internal.datastore", reason="wandb has no reader of its files any more"
        )
        self.folder = folder / "run" / "wandb"
        self.variables = {"WANDB_MODE": "offline"}
        self.gone = {
            "WANDB_MODE": "online",
            "WANDB_BASE_URL": "http://127.0.0.1:9",
            "WANDB_API_KEY": "0" * 40,
        }

    @contextmanager
    def gives_up_soon(self, monkeypatch):
        import wandb

        from trainer.trackers import wandb as tracker

        monkeypatch.setattr(tracker, "SETTINGS", tracker.SETTINGS.model_copy(update={"init_timeout": 0.5}))
        wandb.teardown()  # it reads the variables anew
        yield
        wandb.teardown(exit_code=1)

    def runs(self) -> list[Stored]:
        found: dict[str, Stored] = {}
        files = sorted(
            self.folder.glob("offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns
        )
        for file in files:
            id = file.stem.removeprefix("run-")
            self.read(file, found.setdefault(id, Stored(id)))
        return list(found.values())

    def read(self, file: Path, run: Stored) -> None:
        from wandb.proto.wandb_internal_pb2 import Record
        from wandb.sdk.internal.datastore import DataStore

        store = DataStore()
        store.open_for_scan(file)
        run.state = "finished"
        while data := next_record(store):
            record = Record.FromString(data)
            match record.WhichOneof("record_type"):
                case "run":
                    assert (record.run.run_id, record.run.project) == (run.id, PROJECT)
                    run.name = record.run.display_name
                    updates = {
                        each.key or each.nested_key[0]: str(json.loads(each.value_json))
                        for each in record.run.config.update
                    }
                    run.options.update(updates)
                case "history":
                    items = record.history.item
                    row = {
                        item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items
                    }
                    for name in row.keys() - {"step", "seconds", "_step", "_runtime", "_timestamp"}:
                        run.points[name].append((row["step"], row[name]))
                case "preempting":
                    run.state = "stopped"
                case "exit" if record.exit.exit_code and run.state != "stopped":
                    run.state = "failed"
        store.close()


def next_record(store) -> bytes | None:
    try:
        return store.scan_data()
    except AssertionError:  # cut off
        return None


STORES = [MlflowStore, TrackioStore, WandbStore]
