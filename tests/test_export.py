"""A file of plain weights, as torch.load_state_dict takes them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer.checkpoint import storage
from trainer.checkpoint.reading import read
from trainer.cli.train import main as train
from trainer.export import main
from trainer.models.gpt import GPT

RUN = (
    "data=synthetic_tokens data.train_samples=64 data.val_samples=8 data.batch_size=16 data.context_length=8 model=gpt "
    "model.layers=1 model.width=8 model.heads=2 optimizer=sgd loop.max_steps=8 loop.eval_every=2 loop.ema=0.9"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "run"
    assert train([*RUN.split(), f"hydra.run.dir={path}"]) == 0
    return path


def test_a_plain_model_takes_the_weights(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "model.safetensors")
    weights = load_file(run / "model.safetensors")
    model = GPT(layers=1, width=8, heads=2, vocab_size=64, context_length=8)
    assert model.head.weight is model.tokens.weight
    model.load_state_dict(weights)
    saved = read(storage.list_checkpoints(run / "checkpoints")[0])["model"]
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())


def test_which_weights(run: Path, tmp_path: Path) -> None:
    newest = storage.list_checkpoints(run / "checkpoints")[0]
    assert main([str(newest), "--out", str(tmp_path / "one")]) == 0
    assert main([str(run), "--ema", "--out", str(tmp_path / "ema")]) == 0
    assert main([str(run), "--best", "--out", str(tmp_path / "best")]) == 0
    average = read(newest)["ema"]["average"]
    assert torch.equal(load_file(tmp_path / "ema")["norm.weight"], average["norm.weight"])
    best = read(run / "checkpoints" / storage.BEST)["model"]
    assert torch.equal(load_file(tmp_path / "best")["norm.weight"], best["norm.weight"])
    assert not torch.equal(load_file(tmp_path / "one")["norm.weight"], average["norm.weight"])


def test_mistakes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, hint in (
        (["/nonexistent"], "/nonexistent does not exist"),
        ([str(tmp_path)], "has no checkpoints"),
        ([str(run), "--out", str(tmp_path / "no" / "file")], "does not exist"),
        ([str(run), "--last"], "--last"),
    ):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert hint in err
    assert list(tmp_path.iterdir()) == []
