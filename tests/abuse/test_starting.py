"""A run starts from another run, with options of its own, or from weights alone."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.abuse.runs import checkpoints, go, refusal
from trainer.checkpoint.reading import read_verified
from trainer.export.__main__ import main as export


def train_records(run: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "train"]


@pytest.fixture(scope="module")
def weights(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of the finished run in a file."""
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    assert export([str(finished), "--out", str(file)]) == 0
    return file


def test_what_the_log_says_is_what_trains(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The budget counts anew, the rate and the momentum are those given here, momentum buffers are those from there."""
    run = tmp_path / "run"
    options = ["schedule=constant", "optimizer.lr=1e-3", "optimizer.momentum=0.5", "loop.max_steps=3"]
    assert go(run, *options, f"checkpoint.resume={finished}") == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"starts from {checkpoints(finished)[0]}: the weights and the optimizer's state; options" in said
    assert [(record["step"], record["lr"]) for record in train_records(run)] == [
        (1, 1e-3),
        (2, 1e-3),
        (3, 1e-3),
    ]
    [group] = read_verified(checkpoints(run)[0])["optimizer"]["param_groups"]
    assert (group["lr"], group["momentum"]) == (1e-3, 0.5)

    still = tmp_path / "still"  # with a rate of 0 momentum buffers change, and weights do not
    assert go(still, "optimizer.lr=0", "loop.max_steps=1", f"checkpoint.resume={finished}") == 0
    before, after = (read_verified(checkpoints(one)[0]) for one in (finished, still))
    name = "head.weight"
    assert torch.equal(before["model"][name], after["model"][name])
    old, new = (each["optimizer"]["state"][name]["momentum_buffer"] for each in (before, after))
    gradient = new - 0.9 * old
    assert gradient.norm() < old.norm()
    assert not torch.equal(old, torch.zeros_like(old))


def test_the_same_budget_is_trained_again(finished: Path, tmp_path: Path) -> None:
    assert go(tmp_path / "run", f"checkpoint.resume={finished}") == 0
    assert len(train_records(tmp_path / "run")) == 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["optimizer=adamw"], "optimizer=sgd there, adamw here"),
        (["optimizer.nesterov=true"], "optimizer.nesterov=false there, true here"),
    ],
)
def test_another_optimizer_is_refused(
    options: list[str], said: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refusal(capsys, go(tmp_path / "run", *options, f"checkpoint.resume={finished}"))
    assert line == (
        f"error: checkpoint.resume={finished} is of another optimizer: {said}: "
        f"checkpoint.weights={finished} takes its weights alone\n"
    )
    assert not (tmp_path / "run").exists()


def test_an_average_that_is_switched_on_starts_from_the_loaded_weights(
    finished: Path, tmp_path: Path
) -> None:
    trained = read_verified(checkpoints(finished)[0])["model"]["head.weight"]
    for option in ("resume", "weights"):
        line = [f"checkpoint.{option}={finished}", "loop.ema=0.99", "optimizer.lr=0", "loop.max_steps=1"]
        assert go(tmp_path / option, *line) == 0
        average = read_verified(checkpoints(tmp_path / option)[0])["ema"]["average"]["head.weight"]
        torch.testing.assert_close(average, trained)


@pytest.mark.parametrize("kind", ["run", "checkpoint", "file"])
def test_weights_alone_go_to_any_optimizer(kind: str, finished: Path, weights: Path, tmp_path: Path) -> None:
    path = {"run": finished, "checkpoint": checkpoints(finished)[0], "file": weights}[kind]
    run = tmp_path / "run"
    line = ["optimizer=adam", "optimizer.lr=0", "loop.max_steps=1", f"checkpoint.weights={path}"]
    assert go(run, *line) == 0
    content = read_verified(checkpoints(run)[0])
    trained = load_file(weights)
    assert all(
        torch.equal(content["model"][name], trained[name]) for name in ("head.weight", "features.0.weight")
    )
    assert float(content["optimizer"]["state"]["head.weight"]["step"]) == 1


def test_weights_that_do_not_match(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = load_file(weights)
    changed["odd"] = changed.pop("head.bias")
    changed["head.weight"] = torch.zeros(10, 5)
    save_file(changed, tmp_path / "changed.safetensors")
    run, option = tmp_path / "run", f"checkpoint.weights={tmp_path / 'changed.safetensors'}"
    shape = "of another shape: head.weight (10, 5) there, (10, 4) here"
    assert refusal(capsys, go(run, option)) == (
        f"error: {option} does not match the model: missing there: head.bias; unknown to the model: odd; "
        f"{shape}: checkpoint.weights_strict=false takes what matches\n"
    )
    assert not run.exists()
    assert go(run, option, "checkpoint.weights_strict=false", "optimizer.lr=0", "loop.max_steps=1") == 0
    said = capsys.readouterr().out.replace("\n", "")
    for what in ("missing there: head.bias", "unknown to the model: odd", shape):
        assert f"warning: {option}: {what}".replace(" ", "") in said.replace(" ", "")
    found = read_verified(checkpoints(run)[0])["model"]
    assert torch.equal(found["features.0.weight"], changed["features.0.weight"])

    save_file({"odd": torch.zeros(1)}, tmp_path / "changed.safetensors")
    said = refusal(capsys, go(tmp_path / "other", option, "checkpoint.weights_strict=false"))
    assert "does not match the model: missing there: " in said


def test_weights_that_are_none(tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("no tensors")
    for path, said in (("/none", "/none does not exist"), (tmp_path / "text", "is no safetensors file")):
        assert said in refusal(capsys, go(tmp_path / "run", f"checkpoint.weights={path}"))
    both = [f"checkpoint.weights={finished}", f"checkpoint.resume={finished}"]
    assert "exclude each other" in refusal(capsys, go(tmp_path / "run", *both))
