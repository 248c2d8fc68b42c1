import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.data import DATA, Data
from trainer.data.tokens import PackedTokens
from trainer.errors import ConfigError, DataError, MissingExtra

POEM = "Ein Männlein steht im Walde, ganz still und stumm.\n" * 20


def build(path: Path | str | None, **options) -> Data:
    config = DATA.check({"name": "text", "path": path if path is None else str(path), **options})
    return DATA.build(config, torch.device("cpu"), 0)


@pytest.fixture
def poem(tmp_path: Path) -> Path:
    path = tmp_path / "poem.txt"
    path.write_text(POEM, encoding="utf-8")
    return path


def everything(data: Data) -> str:
    """All samples of both splits, decoded; the splits' last tokens may be missing."""
    splits = [data.train, *data.evals.values()]
    return "".join(data.decode(split.batch(torch.arange(len(split)), None)[0].flatten()) for split in splits)


@pytest.mark.parametrize("tokenizer", ["bytes", "chars"])
def test_targets_are_the_next_tokens_and_decoding_gives_the_text(poem, tokenizer):
    data = build(poem, tokenizer=tokenizer, context_length=10)
    inputs, targets = data.train.batch(torch.arange(len(data.train)), None)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.shape[1] == 10
    assert torch.equal(inputs.flatten()[1:], targets.flatten()[:-1])
    text = data.decode(inputs.flatten())
    assert POEM.startswith(text)
    assert torch.equal(data.encode(text), inputs.flatten())
    assert len(text.encode()) > 0.85 * len(POEM.encode())
    assert list(data.evals) == ["val"]
    assert data.kind == "tokens"


def test_vocabularies(poem):
    data = build(poem, tokenizer="bytes", context_length=16)
    assert data.model_defaults == {"vocab_size": 256, "context_length": 16}
    data = build(poem, tokenizer="chars", context_length=16)
    assert data.model_defaults == {"vocab_size": len(set(POEM)), "context_length": 16}


def test_validation_is_the_end_of_the_text(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 75 + "b" * 25)
    data = build(tmp_path / "a.txt", context_length=4, val_fraction=0.25)
    assert set(everything(data)[: len(data.train) * 4]) == {"a"}
    assert set(data.decode(data.evals["val"].batch(torch.tensor([0, 5]), None)[1].flatten())) == {"b"}


def test_a_folder_is_its_files_in_order(tmp_path):
    (tmp_path / "b.txt").write_text("second " * 5)
    (tmp_path / "a.txt").write_text("first " * 5)
    (tmp_path / "notes.md").write_text("no text")
    data = build(tmp_path, context_length=1, val_fraction=0.1)
    expected = "first " * 5 + "\n" + "second " * 5
    assert everything(data) == expected[: len(data.train)] + expected[len(data.train) + 1 : -1]


def test_packing_leaves_out_only_the_incomplete_rest():
    tokens = np.arange(23, dtype=np.int32)
    split = PackedTokens(tokens, 5, torch.device("cpu"))
    assert len(split) == 4
    inputs, targets = split.batch(torch.tensor([3, 0]), key=9)
    assert inputs.tolist() == [[15, 16, 17, 18, 19], [0, 1, 2, 3, 4]]
    assert torch.equal(targets, inputs + 1)
    assert len(PackedTokens(tokens[:21], 5, torch.device("cpu"))) == 4
    assert len(PackedTokens(tokens[:20], 5, torch.device("cpu"))) == 3


def test_a_tiktoken_encoding(poem, monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([i]): i for i in range(256)} | {b"st": 256, b"ei": 257}
    tiny = tiktoken.Encoding("tiny", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens={"<end>": 258})
    monkeypatch.setattr(tiktoken, "list_encoding_names", lambda: ["tiny"])
    monkeypatch.setattr(tiktoken, "get_encoding", {"tiny": tiny}.get)
    data = build(poem, tokenizer="tiny", context_length=10)
    assert data.model_defaults["vocab_size"] == 259
    inputs, _ = data.train.batch(torch.arange(len(data.train)), None)
    assert 256 in inputs
    assert POEM.startswith(data.decode(inputs.flatten()))
    with pytest.raises(ConfigError, match=r"unknown data.tokenizer 'tinny'; did you mean tiny\?"):
        build(poem, tokenizer="tinny")


def test_an_encoding_that_cannot_be_fetched(poem, monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")

    def offline(name: str):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(
        DataError, match=r"data.tokenizer=gpt2 cannot be fetched .ConnectionError.: set TIKTOKEN_CACHE_DIR"
    ):
        build(poem, tokenizer="gpt2")


def test_without_tiktoken(poem, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(
        MissingExtra, match=r"data.tokenizer=gpt2 .* needs the package tiktoken: pip install '.\[text\]'"
    ):
        build(poem, tokenizer="gpt2")


def test_errors_say_what_would_be_right(tmp_path, poem):
    with pytest.raises(ConfigError, match=r"data.path is required: a text file, or a folder of .txt files"):
        build(None)
    with pytest.raises(
        DataError, match=r"nowhere cannot be read .No such file or directory.: name a text file"
    ):
        build(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no .txt files: name a text file"):
        build(tmp_path / "empty")
    (tmp_path / "latin.txt").write_bytes("Männlein".encode("latin-1"))
    with pytest.raises(DataError, match=r"is not UTF-8 \(byte 1\): data.tokenizer=bytes takes any file"):
        build(tmp_path / "latin.txt")
    with pytest.raises(
        DataError,
        match=r"leaves 102 tokens to the split val, .* data.context_length \+ 1 = 257: take a longer text",
    ):
        build(poem)
