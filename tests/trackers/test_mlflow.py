"""MLflow's own client reads from a real SQLite store what a run has reported or what was pushed."""

import json
import math
import shutil

import pytest
import yaml

from tests.monitor.fake import CONFIG, accuracy, loss, monitors, play
from trainer.cli.train import main as train
from trainer.report.__main__ import main
from trainer.rundir.status import write_status
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


@pytest.fixture
def run(tmp_path):
    """A run directory without numbers."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump({"name": "digits", **CONFIG}))
    write_status(path, "finished", step=60)
    return path


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


def test_a_run_reports(client, run):
    report(run)
    [found] = runs(client)
    assert (found.info.run_name, found.info.status) == ("digits", "FINISHED")
    assert found.data.params["optimizer.lr"] == "0.001"
    points = history(client, found)
    assert points["train/loss"] == [(step, loss(step), 500 * step) for step in range(5, 61, 5)]
    assert points["test/accuracy"] == [(step, accuracy(step), 500 * step) for step in range(10, 61, 10)]
    assert {"train/lr", "speed/seconds", "speed/samples_per_second", "speed/eval_seconds"} <= points.keys()


def test_killed_and_resumed_is_one_run_without_doubled_points(client, run):
    first = monitors(run, "jsonl", "mlflow")
    play(first, 1, 33)
    state = first.state_dict()
    play(first, 34, 48)
    first.state_dict()  # stores what the resumed run will report again
    second = monitors(run, "jsonl", "mlflow", resumed_step=33)
    second.load_state_dict(state)
    second.finish("finished", play(second, 34, 60))
    [found] = runs(client)
    assert history(client, found)["train/loss"] == [(s, loss(s), 500 * s) for s in range(5, 61, 5)]


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


def test_pushed_again_and_again(client, run, capsys):
    told = monitors(run, "jsonl")
    told.finish("finished", play(told, 1, 60))
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(whole[: len(whole) // 2])  # it trains still
    write_status(run, "preempted", step=30)
    push(run, capsys)
    assert runs(client)[0].info.status == "KILLED"
    (run / "metrics.jsonl").write_bytes(whole)
    write_status(run, "finished", step=60)
    for _ in range(2):
        push(run, capsys)
        [found] = runs(client)
        assert history(client, found)["test/accuracy"] == [
            (s, accuracy(s), 500 * s) for s in range(10, 61, 10)
        ]
        assert found.info.status == "FINISHED"
        assert found.data.params["optimizer.betas"] == "[0.9, 0.99]"


def test_a_push_after_a_run_that_reported_adds_nothing(client, run, capsys):
    report(run)
    before = history(client, runs(client)[0])
    push(run, capsys)
    [found] = runs(client)
    assert history(client, found) == before


def test_numbers_that_are_not_finite_and_those_of_callbacks(client, run, capsys):
    lines = [
        {"kind": "scalars", "step": 5, "epoch": 0.5, "sharpness/largest_eigenvalue": 3.5},
        {"kind": "train", "step": 10, "epoch": 1.0, "train/loss": None},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    push(run, capsys)
    points = history(client, runs(client)[0])
    assert points["sharpness/largest_eigenvalue"] == [(5, 3.5, 0)]
    assert [step for step, value, _ in points["train/loss"] if math.isnan(value)] == [10]


def test_a_new_run_in_the_same_directory_is_a_new_one(client, run, capsys):
    report(run)
    [earlier] = runs(client)
    told = monitors(run, "jsonl", "mlflow")
    told.finish("failed", play(told, 1, 5))
    push(run, capsys)
    found = {each.info.run_id: each for each in runs(client)}
    kept = found.pop(earlier.info.run_id)
    [new] = found.values()
    assert len(history(client, kept)["train/loss"]) == 12
    assert history(client, new)["train/loss"] == [(5, loss(5), 2500)]


def test_in_a_slurm_job_the_run_stays_in_its_directory(empty, run, monkeypatch):
    shutil.copy(empty, run / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    report(run)
    [found] = runs(MlflowClient(f"sqlite:///{run}/mlflow.db"))
    assert found.info.run_name == "digits"


def test_a_server_that_is_gone(run, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    told = monitors(run, "console", "jsonl", "mlflow")
    told.finish("finished", play(told, 1, 20))
    assert capsys.readouterr().out.count("warning: monitor.sinks: mlflow fails") == 1
    assert main(["push", str(run), "--to", "mlflow"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"crashed: {run} cannot be pushed to mlflow: MlflowException: ")
    assert said.count("\n") == 1


def test_a_real_run_that_is_stopped_and_goes_on(client, tmp_path, capsys):
    run = tmp_path / "trained"
    tiny = ["model.widths=[4]", "loop.log_every=5", "loop.eval_every=10", "monitor.sinks=[jsonl,mlflow]"]
    for steps in (20, 30):
        assert train([*tiny, f"loop.max_steps={steps}", f"hydra.run.dir={run}"]) == 0
    [found] = runs(client)
    before = history(client, found)
    assert [step for step, *_ in before["train/loss"]] == [5, 10, 15, 20, 25, 30]
    push(run, capsys)
    assert history(client, runs(client)[0]) == before
