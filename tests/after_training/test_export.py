"""Plain weights, as torch.load_state_dict takes them, and programs that compute what the model does."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer.checkpoint import storage
from trainer.checkpoint.reading import read
from trainer.cli.stored_run import build_again, load
from trainer.cli.train import main as train
from trainer.errors import ConfigError
from trainer.export.__main__ import main
from trainer.export.hugging_face import counterpart
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
    for name in ("tokens.weight", "head.weight"):  # they are one, and the average has one of them
        assert torch.equal(load_file(tmp_path / "ema")[name], average["tokens.weight"])
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


# Other formats --------------------------------------------------------------------------------------------------------


def exported(capsys: pytest.CaptureFixture[str], *argv: object) -> Path:
    assert main([*map(str, argv)]) == 0
    return Path(capsys.readouterr().out.splitlines()[-1])


def model_of(run: Path) -> torch.nn.Module:
    parts = build_again(run, [])
    load(parts, storage.list_checkpoints(run / "checkpoints")[0])
    return parts.model.eval()


@pytest.mark.slow
def test_torch_export(digits: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = torch.export.load(exported(capsys, digits, "--to", "torch-export", "--out", tmp_path / "m.pt2"))
    inputs = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(inputs), model_of(digits)(inputs), rtol=0, atol=1e-5)
    program = torch.export.load(exported(capsys, text, "--to", "torch-export", "--out", tmp_path / "t.pt2"))
    tokens = torch.randint(20, (1, 7))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(tokens), model_of(text)(tokens), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_onnx(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    file = exported(capsys, text, "--to", "onnx", "--out", tmp_path / "text.onnx")
    session = onnxruntime.InferenceSession(file)
    for shape in ((1, 24), (4, 5)):
        tokens = torch.randint(20, shape)
        (logits,) = session.run(None, {session.get_inputs()[0].name: tokens.numpy()})
        with torch.no_grad():
            expected = model_of(text)(tokens)
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-5)


LAYOUTS = {
    "GPT-2": "",
    "GPT-2, untied, without biases": "model.tied=false model.bias=false model.mlp=gelu_tanh model.mlp_width=24",
    "Llama": "model.position=rope model.norm=rms model.mlp=swiglu model.bias=false model.kv_heads=1 "
    "model.rope_base=500",
}


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
def test_transformers_computes_the_same(
    options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    run, steps = tmp_path / "run", "optimizer=adamw optimizer.lr=0.03 device=cpu monitor.sinks=[]"
    assert train([*f"{RUN} {steps} {options} hydra.run.dir={run}".split()]) == 0
    folder = exported(capsys, run, "--to", "hf")
    assert folder == run / "hf"
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    tokens = torch.randint(64, (3, 8))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(tokens).logits, model_of(run)(tokens), rtol=1e-5, atol=1e-5)


def test_what_does_not_fit(
    digits: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[[int, str], None],
) -> None:
    refused(main([str(digits), "--to", "hf", "--out", str(tmp_path / "hf")]), "model=cnn is neither")
    assert not (tmp_path / "hf").exists()
    refused(main([str(text), "--to", "pickle"]), "argument --to: invalid choice: 'pickle'")
    refused(main([str(text), "--to", "hf", "--out", __file__]), "is a file")
    refused(main([str(text), "--to", "onnx", "--step", "3"]), "has no checkpoint of step 3 (known: ")
    options = {
        "norm": "rms",
        "position": "learned",
        "mlp": "gelu",
        "qk_norm": False,
        "kv_heads": None,
        "heads": 2,
        "bias": True,
    }
    with pytest.raises(ConfigError, match=r"data\.document_mask=true.* --set data\.document_mask=false"):
        counterpart(GPT(layers=1, width=8, heads=2, vocab_size=3, context_length=3, document_end=0), options)
    cases = (
        ({}, "model.norm=rms does not fit GPT-2's"),
        ({"position": "rope"}, "model.mlp=gelu does not fit"),
    )
    for change, hint in cases:
        with pytest.raises(ConfigError, match=hint):
            counterpart(
                GPT(layers=1, width=8, heads=2, vocab_size=3, context_length=3), {**options, **change}
            )
    monkeypatch.setattr("trainer.cli.common.find_spec", lambda name: None)
    refused(main([str(text), "--to", "onnx"]), "--to onnx needs the package onnx: pip install '.[export]'")
