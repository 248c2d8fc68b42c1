"""Every tracker, really: what a run reports or what was pushed is read back by the tracker's own package."""

import json
import math

import pytest

from tests.monitor.fake import accuracy, loss, monitors, play
from tests.trackers.stores import STORES
from trainer.cli.train import main as train
from trainer.report.__main__ import main
from trainer.rundir.status import write_status
from trainer.trackers.base import TRACKERS


@pytest.fixture(params=STORES, ids=lambda store: store.name)
def store(request, tmp_path, monkeypatch):
    opened = request.param(tmp_path)
    for name, value in opened.variables.items():
        monkeypatch.setenv(name, value)
    return opened


def report(store, directory):
    told = monitors(directory, "jsonl", store.name)
    told.finish("finished", play(told, 1, 60))


def push(store, run, capsys):
    capsys.readouterr()
    assert main(["push", str(run), "--to", store.name]) == 0
    assert capsys.readouterr().out == f"{store.name}: 1 run pushed\n"


def losses(first, last):
    return [(step, loss(step)) for step in range(first, last + 1, 5)]


def test_all_are_here():
    assert [store.name for store in STORES] == [*TRACKERS]


def test_a_run_reports(store, run):
    report(store, run)
    [found] = store.runs()
    assert (found.name, found.state) == ("digits", "finished")
    assert (found.options["optimizer.lr"], found.options["optimizer.betas"]) == ("0.001", "[0.9, 0.99]")
    assert found.points["train/loss"] == losses(5, 60)
    assert found.points["test/accuracy"] == [(step, accuracy(step)) for step in range(10, 61, 10)]
    assert {"train/lr", "speed/seconds", "speed/samples_per_second", "speed/eval_seconds"} <= {*found.points}


def test_stopped_and_resumed_is_one_run_without_doubled_points(store, run):
    first = monitors(run, "jsonl", store.name)
    play(first, 1, 33)
    state = first.state_dict()
    first.finish(
        "preempted", play(first, 34, 48)
    )  # more than the checkpoint has: told again, and there already
    [found] = store.runs()
    assert found.state == "stopped"
    second = monitors(run, "jsonl", store.name, resumed_step=33)
    second.load_state_dict(state)
    second.finish("finished", play(second, 34, 60))
    [found] = store.runs()
    assert found.state == "finished"
    assert found.points["train/loss"] == losses(5, 60)


def test_pushed_again_and_again(store, run, capsys):
    told = monitors(run, "jsonl")
    told.finish("finished", play(told, 1, 60))
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(whole[: len(whole) // 2])  # it trains still
    write_status(run, "preempted", step=30)
    push(store, run, capsys)
    assert store.runs()[0].state == "stopped"
    (run / "metrics.jsonl").write_bytes(whole)
    write_status(run, "finished", step=60)
    for _ in range(2):
        push(store, run, capsys)
        [found] = store.runs()
        assert found.points["test/accuracy"] == [(step, accuracy(step)) for step in range(10, 61, 10)]
        assert found.state == "finished"


def test_a_push_after_a_run_that_reported_adds_nothing(store, run, capsys):
    report(store, run)
    [before] = store.runs()
    push(store, run, capsys)
    [found] = store.runs()
    assert (found.id, found.points) == (before.id, before.points)


def test_numbers_that_are_not_finite_and_those_of_callbacks(store, run, capsys):
    lines = [
        {"kind": "scalars", "step": 5, "epoch": 0.5, "sharpness/largest_eigenvalue": 3.5},
        {"kind": "train", "step": 10, "epoch": 1.0, "train/loss": None},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    push(store, run, capsys)
    [found] = store.runs()
    assert found.points["sharpness/largest_eigenvalue"] == [(5, 3.5)]
    assert [step for step, value in found.points["train/loss"] if math.isnan(value)] == [10]


def test_a_new_run_in_the_same_directory_is_a_new_one(store, run, capsys):
    report(store, run)
    [earlier] = store.runs()
    told = monitors(run, "jsonl", store.name)
    told.finish("failed", play(told, 1, 5))
    write_status(run, "failed", step=5)
    push(store, run, capsys)
    found = {each.id: each for each in store.runs()}
    assert len(found.pop(earlier.id).points["train/loss"]) == 12
    [new] = found.values()
    assert (new.state, new.points["train/loss"]) == ("failed", losses(5, 5))


def test_a_server_that_is_gone(store, run, monkeypatch, capsys):
    for name, value in store.gone.items():
        monkeypatch.setenv(name, value)
    with store.gives_up_soon(monkeypatch):
        told = monitors(run, "console", "jsonl", store.name)
        told.finish("finished", play(told, 1, 20))
        assert capsys.readouterr().out.count(f"warning: monitor.sinks: {store.name} fails") == 1
        assert main(["push", str(run), "--to", store.name]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"crashed: {run} cannot be pushed to {store.name}: ")
    assert said.count("\n") == 1


def test_a_real_run_that_is_stopped_and_goes_on(store, tmp_path, capsys):
    run = tmp_path / "run"
    tiny = ["model.widths=[4]", "loop.log_every=5", "loop.eval_every=10"]
    for steps in (20, 30):
        command = [*tiny, f"monitor.sinks=[jsonl,{store.name}]", f"loop.max_steps={steps}"]
        assert train([*command, f"hydra.run.dir={run}"]) == 0
    [before] = store.runs()
    assert [step for step, _ in before.points["train/loss"]] == [5, 10, 15, 20, 25, 30]
    push(store, run, capsys)
    [found] = store.runs()
    assert (found.id, found.points) == (before.id, before.points)
