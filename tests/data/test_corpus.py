"""Training on token shards: which samples come when, and that they are what the shards hold."""

import pickle
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.data import DATA, Data, LoaderOptions, TrainLoader, eval_batches, hold_out
from trainer.data.__main__ import main
from trainer.data.shards import MANIFEST, Manifest, TokenShards, shard_path
from trainer.errors import ConfigError, DataError, UserError

CPU = torch.device("cpu")


def write_shards(folder: Path, tokens: np.ndarray, shard_tokens: int = 50, **changes: object) -> Path:
    """A folder of shards; the tokens are numbers that say where they are."""
    folder.mkdir()
    parts = np.split(tokens.astype("<u2"), range(shard_tokens, len(tokens), shard_tokens))
    for number, part in enumerate(parts):
        shard_path(folder, number).write_bytes(part.tobytes())
    values = {
        "tokens": len(tokens),
        "documents": 1,
        "shard_tokens": shard_tokens,
        "dtype": "<u2",
        "vocab_size": 2**16,
        "end_token": 0,
        "tokenizer": "bytes",
        "tokenizer_hash": "same",
        "checksums": [""] * len(parts),
        "identity": "",
    }
    Manifest(**{**values, **changes}).write(folder)  # type: ignore[arg-type]
    return folder


def build(**options: object) -> Data:
    return DATA.build(DATA.check({"name": "tokens", "context_length": 8, **options}), CPU, 0)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, float]:
    """Two sources, whose tokens are below and from 10,000 on."""
    a = write_shards(tmp_path / "a", np.arange(1000))
    b = write_shards(tmp_path / "b", np.arange(10_000, 10_407), shard_tokens=1000)
    return {str(a): 3.0, str(b): 1.0}


def test_samples_are_the_tokens_across_shards(folders: dict[str, float]) -> None:
    data = build(path=next(iter(folders)), val_fraction=0.1)
    assert len(data.train) == 899 // 8
    inputs, targets = data.train.batch(torch.arange(len(data.train)), None)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs.flatten(), torch.arange(896))
    assert torch.equal(targets, inputs + 1)
    assert data.model_defaults == {"vocab_size": 2**16, "context_length": 8}
    assert data.train.batch(torch.arange(0), None)[0].shape == (0, 8)


def test_no_training_sample_touches_what_is_held_out(folders: dict[str, float]) -> None:
    data = hold_out(build(sources=folders, val_fraction=0.2), 0.25)
    assert list(data.evals) == ["val", "test"]
    touched = []
    for split in (data.train, *data.evals.values()):
        inputs, targets = split.batch(torch.arange(len(split)), None)
        touched.append({*inputs.flatten().tolist(), *targets.flatten().tolist()})
    train, val, test = touched
    assert not train & val
    assert not train & test
    assert not val & test
    assert min(len(part) for part in touched) > 100
    assert (
        max(part for part in train if part < 10_000)
        < min(val)
        < max(x for x in val if x < 10_000)
        < min(test)
    )


def sample_numbers(
    data: Data, batch_size: int, batches: int, seed: int = 0, drop_last: bool = True, **ranks: int
) -> list[list[int]]:
    """The first token of every sample, batch by batch."""
    options = LoaderOptions(batch_size=batch_size, drop_last=drop_last)
    loader = TrainLoader(data.train, options, seed=seed, **ranks)
    return [[int(x) for part in loader.next_batch() for x in part[0][:, 0]] for _ in range(batches)]


def test_each_sample_comes_once_before_any_comes_again(folders: dict[str, float]) -> None:
    data = build(path=next(iter(folders)), val_fraction=0.1)
    size = len(data.train)  # 112, of which no multiple of 10 is one
    seen = [*chain(*sample_numbers(data, 10, 40))]
    passes = [seen[start : start + size] for start in range(0, len(seen) - size, size)]
    assert len(passes) == 3
    assert all(sorted(one) == list(range(0, 8 * size, 8)) for one in passes)
    assert passes[0] != passes[1]
    assert seen[:10] != sorted(seen[:10])


def test_the_mixture_has_its_weights_in_every_batch_and_repeats_a_source_only_when_it_is_through(
    folders: dict[str, float],
) -> None:
    data = build(sources=folders, val_fraction=0.1)
    batches = sample_numbers(data, 8, 60)
    assert all(sum(x < 10_000 for x in batch) == 6 for batch in batches)
    for source, size in ((0, 899 // 8), (1, 365 // 8)):
        drawn = [x for batch in batches for x in batch if x // 10_000 == source]
        for start in range(0, len(drawn), size):
            assert max(Counter(drawn[start : start + size]).values()) == 1


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("world_size", "micro_batches"), [(2, 1), (3, 1), (1, 4), (3, 2)])
def test_batches_are_the_same_on_any_number_of_ranks(
    folders: dict[str, float], world_size: int, micro_batches: int, drop_last: bool
) -> None:
    data = build(sources=folders, val_fraction=0.1)
    alone = sample_numbers(data, 12, 25, drop_last=drop_last)
    each = {"world_size": world_size, "micro_batches": micro_batches, "drop_last": drop_last}
    ranks = [sample_numbers(data, 12, 25, rank=rank, **each) for rank in range(world_size)]
    assert [[*chain(*parts)] for parts in zip(*ranks, strict=True)] == alone
    assert alone != sample_numbers(data, 12, 25, seed=1)


def test_it_resumes_anywhere(folders: dict[str, float]) -> None:
    data = build(sources=folders, val_fraction=0.1)
    loader = TrainLoader(data.train, LoaderOptions(batch_size=12), seed=3)
    states, batches = [], []
    for _ in range(2 * loader.batches_per_epoch + 3):
        states.append(loader.state_dict())
        batches.append(loader.next_batch()[0][0])
    for state, expected in list(zip(states, batches, strict=True))[::5]:
        again = TrainLoader(data.train, LoaderOptions(batch_size=12), seed=3)
        again.load_state_dict(state)
        assert torch.equal(again.next_batch()[0][0], expected)


def test_workers_read_the_same(folders: dict[str, float]) -> None:
    data = build(sources=folders, val_fraction=0.1)
    loaders = [TrainLoader(data.train, LoaderOptions(batch_size=12, num_workers=n), seed=3) for n in (0, 1)]
    for _ in range(3):
        here, there = (loader.next_batch()[0] for loader in loaders)
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))
    loaders[1].close()
    copy = pickle.loads(pickle.dumps(data.train))  # as where workers are not forked
    assert torch.equal(copy.batch(torch.arange(5), None)[0], data.train.batch(torch.arange(5), None)[0])


def test_evaluation_sees_each_held_out_sample_once(folders: dict[str, float]) -> None:
    data = build(sources=folders, val_fraction=0.3)
    seen = torch.cat([x[:, 0] for x, _ in eval_batches(data.evals["val"], LoaderOptions(eval_batch_size=7))])
    assert seen.tolist() == [*range(700, 992, 8), *range(10_285, 10_400, 8)]


def test_text_and_back(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("häßlich " * 50)
    assert (
        main(["tokenize", str(tmp_path / "a.txt"), "--tokenizer", "bytes", "--out", str(tmp_path / "out")])
        == 0
    )
    data = build(path=str(tmp_path / "out"), val_fraction=0.2)
    assert data.encode is not None
    assert data.decode is not None
    assert (
        data.decode(data.train.batch(torch.arange(5), None)[0].flatten())
        == ("häßlich " * 50).encode()[:40].decode()
    )
    assert data.decode(data.encode("häßlich")) == "häßlich"


def test_a_tokenizer_whose_end_token_was_named(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(["?", "Document", "<end>"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "my.json"))
    (tmp_path / "a.txt").write_text("Document " * 50)
    line = ["tokenize", tmp_path / "a.txt", "--tokenizer", tmp_path / "my.json", "--out", tmp_path / "out"]
    assert main([*map(str, line), "--end-token", "<end>", "--workers", "1"]) == 0
    data = build(path=str(tmp_path / "out"), val_fraction=0.2)
    assert data.encode is not None
    assert data.decode is not None
    assert data.encode("Document ?").tolist() == [1, 0]
    assert data.decode(torch.tensor([1, 2])) == "Document <end>"


def test_a_tokenizer_that_is_not_there_shows_numbers(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "a", np.arange(1000), tokenizer="tokenizer.json")
    data = build(path=str(folder))
    assert data.decode is not None
    assert "tokenizer.json is no file" in data.decode(torch.tensor([1, 2]))
    assert data.decode(torch.tensor([1, 2])).endswith("\n[1, 2]")
    assert data.encode is not None
    with pytest.raises(UserError, match=r"tokenizer.json is no file"):
        data.encode("a")


def test_few_files_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.open_files.OPEN_FILES", 3)
    shards = TokenShards(write_shards(tmp_path / "a", np.arange(1000)))
    out = np.empty(1000, dtype="<u2")
    shards.read(0, out.data.cast("B"))
    assert np.array_equal(out, np.arange(1000))
    assert len(shards._files) == 3


def test_mistakes_are_one_line(tmp_path: Path, folders: dict[str, float]) -> None:
    a, b = folders
    with pytest.raises(ConfigError, match=r"data.path=DIR or data.sources=.DIR: WEIGHT, .... is required"):
        build()
    with pytest.raises(ConfigError, match="is required"):
        build(path=a, sources=folders)
    with pytest.raises(ConfigError, match=r"the weight of .*=-1 is wrong: it must be a number > 0"):
        build(sources={a: 1, b: -1})
    with pytest.raises(ConfigError, match=r"less than 1/10000 of their sum: leave out"):
        build(sources={a: 1, b: 1e-6})
    with pytest.raises(
        DataError, match=r"data.path=.*none is no complete folder of token shards .*: make it with"
    ):
        build(path=str(tmp_path / "none"))
    with pytest.raises(
        DataError, match=r"leave no sample of data.context_length \+ 1 = 101 .* take a shorter context"
    ):
        build(path=a, context_length=100)
    other = write_shards(tmp_path / "c", np.arange(1000), tokenizer_hash="other")
    with pytest.raises(ConfigError, match=r"c is not tokenized as .*a is"):
        build(sources={a: 1, str(other): 1})


def test_a_document_mask_needs_documents_that_end_alike(tmp_path: Path) -> None:
    a, b = (
        str(write_shards(tmp_path / name, np.arange(1000), documents=9, end_token=end))
        for name, end in (("a", 3), ("b", 4))
    )
    one = str(write_shards(tmp_path / "one", np.arange(1000), end_token=3))
    for sources in ({a: 1}, {a: 1, one: 1}):
        assert build(sources=sources, document_mask=True).model_defaults["document_end"] == 3
    assert "document_end" not in build(path=a).model_defaults
    with pytest.raises(ConfigError, match=r"document_mask=true: .*one has no documents to tell apart"):
        build(path=one, document_mask=True)
    with pytest.raises(ConfigError, match=r"end in .*a by token 3, in .*b by token 4: use one --end-token"):
        build(sources={a: 1, b: 1}, document_mask=True)


def test_damaged_folders_are_refused_at_the_start(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "a", np.arange(1000))
    split = build(path=str(folder)).train
    shard_path(folder, 3).write_bytes(b"short")
    with pytest.raises(DataError, match=r"shard_00003.bin has become shorter: copy or make it again"):
        split.batch(torch.arange(len(split)), None)
    with pytest.raises(DataError, match=r"shard_00003.bin has 5 bytes instead of 100: copy or make"):
        build(path=str(folder))
    shard_path(folder, 3).unlink()
    with pytest.raises(DataError, match=r"shard_00003.bin is missing"):
        build(path=str(folder))
    (folder / MANIFEST).write_text("{")
    with pytest.raises(DataError, match=r"manifest.json is damaged"):
        build(path=str(folder))
    (folder / MANIFEST).write_text('{"format": 2}')
    with pytest.raises(UserError, match=r"format 2, but this version of the trainer reads format 1 only"):
        build(path=str(folder))
