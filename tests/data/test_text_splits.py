"""Text in three files, and GPT-1's byte pairs against the algorithm in a few lines."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from trainer.data import DATA, Data
from trainer.data.gpt1_bpe import load_bpe, pieces_of
from trainer.errors import ConfigError, DataError, MissingExtra

PARTS = {"train": "aaab" * 30, "valid": "bbba" * 10, "test": "cccb" * 10}


def build(path, name="text_splits", **options) -> Data:
    config = DATA.check(
        {"name": name, "path": path if path is None else str(path), "context_length": 8, **options}
    )
    return DATA.build(config, torch.device("cpu"), 0)


def write(folder: Path, pattern: str) -> Path:
    folder.mkdir(exist_ok=True)
    for split, text in PARTS.items():
        (folder / pattern.format(split)).write_text(text)
    return folder


def text_of(data: Data, split) -> str:
    return data.decode(split.batch(torch.arange(len(split)), None)[0].flatten())


@pytest.mark.parametrize("tokenizer", ["bytes", "chars"])
@pytest.mark.parametrize("pattern", ["ptb.{}.txt", "wiki.{}.tokens", "wiki.{}.raw", "{}.txt"])
def test_each_split_is_a_file(tmp_path, pattern, tokenizer):
    data = build(write(tmp_path, pattern), tokenizer=tokenizer)
    assert list(data.evals) == ["val", "test"], "the first picks the best checkpoint"
    for split, part in zip((data.train, *data.evals.values()), PARTS.values(), strict=True):
        assert text_of(data, split) == part[: (len(part) - 1) // 8 * 8]
    if tokenizer == "chars":
        assert data.model_defaults["vocab_size"] == 3, "c occurs in the test file only"


def test_three_files_by_name(tmp_path):
    write(tmp_path, "{}")
    paths = [str(tmp_path / split) for split in ("test", "valid", "train")]
    config = DATA.check({"name": "text_splits", "path": paths, "context_length": 8})
    data = DATA.build(config, torch.device("cpu"), 0)
    assert text_of(data, data.train).startswith("cccb")
    assert text_of(data, data.evals["test"]).startswith("aaab")


@pytest.mark.parametrize(("pattern", "named"), [("ptb.{}.txt", "ptb.test.txt"), ("{}.txt", "test.txt")])
def test_a_folder_of_splits_is_never_joined(tmp_path, pattern, named):
    write(tmp_path, pattern)
    with pytest.raises(
        DataError, match=rf"train.txt and {named}, which data=text would join: take data=text_splits"
    ):
        build(tmp_path, "text")
    build(tmp_path / pattern.format("train"), "text")


def test_folders_that_are_not_three_splits_are_one_line(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^data.path is required: a folder with the files train, valid and test"
    ):
        build(None)
    write(tmp_path, "ptb.{}.txt")
    (tmp_path / "ptb.char.train.txt").write_text("a")
    with pytest.raises(
        DataError, match=r"has ptb.char.train.txt, ptb.train.txt for the split train: give a folder"
    ):
        build(tmp_path)
    (tmp_path / "ptb.train.txt").unlink()
    (tmp_path / "ptb.test.txt").unlink()
    with pytest.raises(
        DataError, match=r"has no file for the split test: .* data.path=\[TRAIN,VALID,TEST\]$"
    ):
        build(tmp_path)
    with pytest.raises(DataError, match=r"nowhere has no file for the split train"):
        build(tmp_path / "nowhere")
    (tmp_path / "ptb.test.txt").write_text("short")
    with pytest.raises(DataError, match=r"leaves 1 tokens to the split train"):
        build(tmp_path)


# GPT-1's byte pairs ----------------------------------------------------------------------------------------------

MERGES = ["l o", "lo w</w>", "e r</w>", "n e", "ne w", "new er</w>", "lo w", "low er</w>"]
LETTERS = "lowernt."
VOCABULARY = [
    "<unk>",
    *LETTERS,
    *(letter + "</w>" for letter in LETTERS),
    *("".join(m.split()) for m in MERGES),
]


@pytest.fixture
def pairs(tmp_path) -> Path:
    folder = tmp_path / "gpt1"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]))
    return folder


def byte_pairs(word: str) -> list[int]:
    """Merges, again and again, the pair that comes first in the list; what is unknown is token 0."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    ranks = {tuple(merge.split()): rank for rank, merge in enumerate(MERGES)}
    while found := [(ranks[pair], place) for place, pair in enumerate(pairwise(pieces)) if pair in ranks]:
        place = min(found)[1]
        pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
    return [VOCABULARY.index(piece) if piece in VOCABULARY else 0 for piece in pieces]


def test_byte_pairs_of_lower_cased_words(pairs):
    pytest.importorskip("tokenizers")
    encode, decode, size, _ = load_bpe(str(pairs))
    words = ["low", "lower", "newer", "new", "wet", "on", "n", "<unk>", "lower", "."]
    expected = [token for word in words for token in ([0] if word == "<unk>" else byte_pairs(word))]
    assert encode("LOW  lower\nNewer new wét on n <unk> lower.").tolist() == expected
    assert size == len(VOCABULARY) == 25
    assert decode(encode("Newer LOWER.").tolist()) == "newer lower ."


def test_a_text_in_pieces_has_the_same_tokens(pairs, monkeypatch):
    pytest.importorskip("tokenizers")
    encode = load_bpe(str(pairs))[0]
    text = "Lower newer\n\n<unk> low\nwet n\u0301ew\n" * 40
    whole = encode(text)
    assert len(whole) > 200
    for size in (1, 7, 50):
        monkeypatch.setattr("trainer.data.gpt1_bpe.PIECE", size)
        assert len(list(pieces_of(text))) > 10
        assert "".join(pieces_of(text)) == text
        assert encode(text).tolist() == whole.tolist()


def test_gpt1s_tokens_of_three_files(pairs, tmp_path):
    pytest.importorskip("tokenizers")
    for split in PARTS:
        (tmp_path / f"wiki.{split}.tokens").write_text(f"low newer {split} " * 10)
    data = build(tmp_path, tokenizer=str(pairs))
    assert data.model_defaults["vocab_size"] == 25
    assert text_of(data, data.train).startswith("low newer t")
    assert data.encode("low").tolist() == byte_pairs("low")


def test_byte_pairs_that_cannot_be_had_are_one_line(pairs, tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    (pairs / "merges.txt").write_text("no pair here")
    with pytest.raises(DataError, match=r"^data.tokenizer=\S+ holds no byte pairs: ") as error:
        load_bpe(str(pairs))
    assert "\n" not in str(error.value)
    (pairs / "merges.txt").unlink()
    write(tmp_path, "{}.txt")
    with pytest.raises(
        DataError, match=r"merges.txt is missing: data.tokenizer=\S+ must hold GPT-1's vocab.json and"
    ):
        build(tmp_path, tokenizer=str(pairs))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        MissingExtra, match=r"a folder, needs the package tokenizers: pip install '.\[text\]'"
    ):
        build(tmp_path, tokenizer=str(pairs))
