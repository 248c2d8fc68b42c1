"""Pictures of a set's own samples are classified as its samples are."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.pictures import cats_and_dogs
from trainer.cli.stored_run import build_again, load
from trainer.cli.train import main as train
from trainer.predict import main

Refused = Callable[[int, str], None]


def predicted(capsys: pytest.CaptureFixture[str], *argv: object) -> list[dict]:
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_digits_from_files(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = build_again(digits, [])
    load(parts, digits / "checkpoints/step_00000012")
    split = parts.data.evals["test"]
    inputs, _ = split.batch(torch.arange(5), None)
    with torch.no_grad():
        expected = parts.model.eval()(inputs).softmax(-1)
    for number in range(5):
        values = split.padded[number, 0].numpy() * (255 / 16)  # white is 16 there
        Image.fromarray(values.round().astype(np.uint8)).save(tmp_path / f"{number}.png")
    found = predicted(capsys, digits, tmp_path, "--top", 10)
    assert [Path(each["path"]).name for each in found] == [f"{number}.png" for number in range(5)]
    for each, row in zip(found, expected, strict=True):
        ours = {guess["class"]: guess["probability"] for guess in each["classes"]}
        assert [ours[str(k)] for k in range(10)] == pytest.approx(row.tolist(), abs=2e-3)  # of 8 bits
        assert each["classes"][0]["class"] == str(row.argmax().item())
    assert main([str(digits), "--step", "4", str(tmp_path / "3.png"), "--top", "2"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == [str(tmp_path / "3.png")] * 2
    assert all(line[2].endswith("%") for line in lines)


def test_a_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cats_and_dogs(tmp_path, train=4, val=4)
    run = tmp_path / "run"
    given = f"data=image_folder data.root={tmp_path} data.image_size=8 data.resize=10 "
    given += "data.batch_size=4 loop.max_steps=2"
    assert train([*given.split(), "device=cpu", "monitor.sinks=[]", f"hydra.run.dir={run}"]) == 0
    parts = build_again(run, [])
    load(parts, run / "checkpoints/step_00000002")
    inputs, _ = parts.data.evals["test"].batch(torch.arange(8), None)
    with torch.no_grad():
        expected = parts.model.eval()(inputs).softmax(-1).max(-1)
    found = predicted(capsys, run, tmp_path / "val", "--set", "data.eval_batch_size=3")
    best = [each["classes"][0] for each in found]
    assert [guess["class"] for guess in best] == [["cat", "dog"][k] for k in expected.indices]
    assert [guess["probability"] for guess in best] == pytest.approx(expected.values.tolist(), rel=1e-5)


def test_a_distilled_network_is_a_classifier(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, picture = tmp_path / "run", tmp_path / "fine.png"
    Image.new("L", (8, 8)).save(picture)
    given = f"objective=distillation objective.teacher={digits} model.widths=[4] loop.max_steps=1 device=cpu"
    assert train([*given.split(), "monitor.sinks=[]", f"hydra.run.dir={run}"]) == 0
    [found] = predicted(capsys, run, picture)
    assert len(found["classes"]) > 0


def test_mistakes(digits: Path, text: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "folder").mkdir()
    picture = tmp_path / "fine.png"
    Image.new("L", (8, 8)).save(picture)
    for arguments, hint in (
        ([digits, tmp_path / "none.png"], "none.png does not exist"),
        ([digits, tmp_path / "folder"], "has no images"),
        ([digits, tmp_path], "broken.png cannot be decoded"),
        ([text, picture], "trainer.predict needs a classifier: model=gpt is none"),
        ([digits, picture, "--top", "0"], "'0' is not an integer of at least 1"),
        ([digits, picture, "--ema", "--step", "3"], "no checkpoint of step 3"),
        ([digits, picture, "--set", "optimizer.lr=1"], "only the data's options can be given"),
        ([tmp_path, picture], "has no checkpoints"),
        ([digits], "the following arguments are required"),
    ):
        refused(main([*map(str, arguments)]), hint)


def test_data_that_are_no_pictures(
    tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    run, picture = tmp_path / "run", tmp_path / "fine.png"
    Image.new("L", (2, 1)).save(picture)
    given = f"data=iris model=mlp optimizer=sgd data.batch_size=60 loop.max_steps=1 hydra.run.dir={run}"
    assert train([*given.split(), "device=cpu", "monitor.sinks=[]"]) == 0
    capsys.readouterr()
    refused(main([str(run), str(picture)]), "needs pictures: data=iris does not say how to read files")
