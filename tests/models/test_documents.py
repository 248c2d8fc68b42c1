"""Documents packed into one sequence: what follows an end is computed as if nothing were before it."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.data.test_corpus import write_shards
from tests.models.test_gpt import LLAMA, SMALL, randomise
from tests.models.test_models import build
from trainer.cli.train import main as train
from trainer.errors import ConfigError
from trainer.export.__main__ import main as export
from trainer.models.decoder_block import document_mask
from trainer.models.gpt import GPT
from trainer.objectives.next_token import NextToken
from trainer.optim import AdaFisher

END = 7
DOCUMENTS = [[1, 2, 3, END], [END], [4, 5, 6, 8, 9, 10, END], [11, 12, 13, 14]]
"""One of them is empty; the last one does not end within the sequence."""
KINDS = {
    "gpt2": {},
    "llama": {**LLAMA, "kv_heads": 2},
    "one head of keys": {"kv_heads": 1, "qk_norm": True, "bias": False},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def pair(kind: str) -> tuple[GPT, GPT]:
    """A model that tells documents apart, and the same one that does not."""
    masked, plain = (randomise(build("gpt", **SMALL, **KINDS[kind], document_end=end)) for end in (END, None))
    plain.load_state_dict(masked.state_dict())
    return masked, plain


def packed() -> Tensor:
    """[2, 16]: the documents, and the same with another one in the first place."""
    tokens = torch.tensor([token for document in DOCUMENTS for token in document])
    other = tokens.clone()
    other[:3] = torch.tensor([20, 21, 22])
    return torch.stack([tokens, other])


def alone(model: GPT) -> Tensor:
    """The logits of one document after the other, as if each were all of its sequence."""
    return torch.cat([model(torch.tensor([document])) for document in DOCUMENTS], 1)


def test_the_mask_by_hand() -> None:
    expected = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]).bool()
    assert torch.equal(document_mask(torch.tensor([[3, END, 3, 3]]), END), expected[None, None])


@each_kind
def test_packed_documents_are_as_each_alone(kind: str) -> None:
    masked, plain = pair(kind)
    logits, expected = masked(packed()), alone(plain)
    assert expected.std() > 0.3
    torch.testing.assert_close(logits[:1], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits[0, 4:], logits[1, 4:])
    assert not torch.allclose(plain(packed())[:1, 4:], expected[:, 4:], atol=0.1)


@each_kind
def test_gradients_are_those_of_each_alone(kind: str) -> None:
    masked, plain = pair(kind)
    masked(packed()[:1]).square().sum().backward()
    alone(plain).square().sum().backward()
    for (name, got), expected in zip(masked.named_parameters(), plain.parameters(), strict=True):
        scale = expected.grad.abs().max().item()
        torch.testing.assert_close(got.grad, expected.grad, atol=1e-5 * scale, rtol=1e-3, msg=name)


@each_kind
def test_a_cache_gives_the_same_logits(kind: str) -> None:
    model, _ = pair(kind)
    tokens = packed()[:1]
    for first in (2, 4, 6):
        cache = model.new_cache()
        got = [model(tokens[:, :first], cache)]
        got += [model(tokens[:, place : place + 1], cache) for place in range(first, 16)]
        torch.testing.assert_close(torch.cat(got, 1), model(tokens), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("chunks", [1, 3])
def test_the_loss_counts_every_token_also_the_first_of_a_document(chunks: int) -> None:
    masked, plain = pair("llama")
    inputs, targets = packed()[:1, :-1], packed()[:1, 1:]
    loss, _ = NextToken(loss_chunks=chunks).loss(masked, (inputs, targets))
    torch.testing.assert_close(loss, F.cross_entropy(alone(plain)[0, :-1], targets[0]))


@each_kind
def test_adafisher_has_factors_of_every_layer(kind: str) -> None:
    model = build("gpt", **SMALL, **KINDS[kind], document_end=END)
    optimizer = AdaFisher(model)
    model(packed()).logsumexp(-1).mean().backward()
    optimizer.step()
    assert [row.parameter for row in optimizer.coverage() if "gradient" in row.source] == []


@pytest.mark.compile
def test_compiled_it_is_the_same() -> None:
    model, _ = pair("gpt2")
    torch.testing.assert_close(torch.compile(model)(packed()), model(packed()), atol=1e-4, rtol=1e-4)


def test_an_end_outside_of_the_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"document_end=50 is no token of the vocabulary: less than 50"):
        build("gpt", **SMALL, document_end=50)


# Runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def line(tmp_path: Path) -> list[str]:
    """A run on documents of three tokens; within each, the first one decides the others."""
    starts = np.random.default_rng(0).integers(1, 10, size=300)
    tokens = np.stack([starts, starts + 10, starts * 0], 1).flatten()
    write_shards(tmp_path / "shards", tokens, shard_tokens=1000, documents=300, vocab_size=20)
    return (
        f"data=tokens data.path={tmp_path / 'shards'} data.context_length=12 data.val_fraction=0.2 data.batch_size=8 "
        "data.document_mask=true model.layers=1 model.width=16 model.heads=2 loop.max_steps=8 optimizer=adafisher "
        f"device=cpu hydra.run.dir={tmp_path / 'run'}"
    ).split()


@pytest.mark.parametrize("form", ["torch-export", "onnx"])
def test_a_run_and_its_exported_program(
    form: str, line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Export compares the outputs of what it wrote with the model's."""
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    options = ["model=gpt", "loop.loss_chunks=2", "loop.activation_checkpointing=full"]
    assert train([*line, *options]) == 0
    assert export([str(tmp_path / "run"), "--to", form]) == 0, capsys.readouterr().err
    assert train([*line, *options, "data.document_mask=false", "loop.max_steps=9"]) == 2
    assert "data.document_mask" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model=gpt1", "needs a model with the option document_end, as model=gpt has: model=gpt1 has none"),
        ("model.document_end=3", "model.document_end=3 does not fit data=tokens, which has 0: leave it null"),
    ],
)
def test_what_does_not_fit_is_one_line(
    change: str, message: str, line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [part for part in line if not part.startswith("model.layers")]
    assert train([*kept, *(["model=gpt"] if "." in change else []), change]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "run").exists()
