"""What is MLflow's own: its axis of time, its stores. The rest is in test_every_tracker.py."""

import shutil

import pytest

from tests.monitor.fake import loss, monitors, play
from trainer.report.__main__ import main
from trainer.trackers.base import PROJECT

pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy")

from mlflow.tracking import MlflowClient


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A new database, which takes a second to make."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").create_experiment(PROJECT)
    return path


@pytest.fixture
def client(empty, tmp_path, monkeypatch):
    shutil.copy(empty, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return MlflowClient(uri)


def runs(client):
    return client.search_runs([client.get_experiment_by_name(PROJECT).experiment_id])


def history(client, run):
    """Every point of a run, by metric: (step, value, milliseconds since the run's start)."""
    return {
        name: [
            (p.step, p.value, p.timestamp - run.info.start_time)
            for p in client.get_metric_history(run.info.run_id, name)
        ]
        for name in run.data.metrics
    }


def report(directory):
    told = monitors(directory, "jsonl", "mlflow")
    told.finish("finished", play(told, 1, 60))


def push(run, capsys):
    capsys.readouterr()
    assert main(["push", str(run), "--to", "mlflow"]) == 0
    assert capsys.readouterr().out == "mlflow: 1 run pushed\n"


def test_the_axis_of_time_counts_training_seconds(client, run):
    report(run)
    [found] = runs(client)
    assert history(client, found)["train/loss"] == [(s, loss(s), 500 * s) for s in range(5, 61, 5)]


def test_killed_and_resumed_after_a_later_checkpoint_was_stored(client, run):
    first = monitors(run, "jsonl", "mlflow")
    play(first, 1, 33)
    state = first.state_dict()
    play(first, 34, 48)
    first.state_dict()  # stores what the resumed run will report again
    second = monitors(run, "jsonl", "mlflow", resumed_step=33)
    second.load_state_dict(state)
    second.finish("finished", play(second, 34, 60))
    [found] = runs(client)
    assert [step for step, *_ in history(client, found)["train/loss"]] == [*range(5, 61, 5)]


def test_a_resumed_run_that_finds_another_store(client, run, capsys):
    play(told := monitors(run, "jsonl"), 1, 30)
    state = {**told.state_dict(), "mlflow": {"id": "0" * 32}}
    second = monitors(run, "jsonl", "mlflow", resumed_step=30)
    second.load_state_dict(state)
    second.finish("finished", play(second, 31, 60))
    [found] = runs(client)
    assert [step for step, *_ in history(client, found)["train/loss"]] == [*range(35, 61, 5)]
    push(run, capsys)  # fills in what came before
    assert sorted(step for step, *_ in history(client, found)["train/loss"]) == [*range(5, 61, 5)]


def test_in_a_slurm_job_the_run_stays_in_its_directory(empty, run, monkeypatch):
    shutil.copy(empty, run / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    report(run)
    [found] = runs(MlflowClient(f"sqlite:///{run}/mlflow.db"))
    assert found.info.run_name == "digits"
