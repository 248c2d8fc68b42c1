"""From files to token shards: what is in them, whatever the format, the workers and the interruptions."""

import gzip
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.forks import FORKS
from trainer.data import documents, encode, tokenize
from trainer.data.__main__ import main
from trainer.data.documents import Piece, read_documents
from trainer.data.shards import MANIFEST, TokenShards

END = 256
DOCUMENTS = [f"Document {number}: häßlich, 日本 " * (number % 7 + 1) for number in range(40)]


def tokens_of(folder: Path) -> np.ndarray:
    shards = TokenShards(folder)
    out = np.empty(len(shards), dtype=shards.dtype)
    shards.read(0, out.data.cast("B"))
    return out


def expected(texts: list[str]) -> list[int]:
    return [token for text in texts for token in [*text.encode(), END]]


def run(*arguments: object) -> int:
    return main(["tokenize", *map(str, arguments)])


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in DOCUMENTS))
    return path


def write(path: Path, texts: list[str]) -> None:
    """In the format that the suffix says."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if path.suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=7)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines))
    elif path.suffix == ".zst":
        compress = pytest.importorskip("zstandard").ZstdCompressor().compress
        path.write_bytes(compress(lines[:500]) + compress(lines[500:]))  # several frames, as pzstd writes
    else:
        path.write_bytes(lines)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_each_row_is_a_document(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, DOCUMENTS)
    assert run(tmp_path / name, "--tokenizer", "bytes", "--out", tmp_path / "out", "--workers", 1) == 0
    assert tokens_of(tmp_path / "out").tolist() == expected(DOCUMENTS)
    manifest = TokenShards(tmp_path / "out").manifest
    assert (manifest.documents, manifest.vocab_size, manifest.dtype) == (len(DOCUMENTS), 257, "<u2")
    # and from any of them on, as after an interruption
    pieces = list(read_documents(str(tmp_path / name), "text", 17))
    assert pieces == [Piece(text, True) for text in DOCUMENTS[17:]]


def test_a_data_set_of_the_package_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(tmp_path / "set.parquet", DOCUMENTS)
    source = f"hf:{tmp_path}"
    assert [piece.text for piece in read_documents(source, "text", 3)] == DOCUMENTS[3:]
    assert run(f"{source}::test", "--tokenizer", "bytes", "--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


def test_a_folder_is_its_files_by_path_and_a_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "b" / "x.py").write_bytes(b"last \xff")
    (tmp_path / "in" / "a.txt").write_text("first\r\n", newline="")
    (tmp_path / "in" / "empty.md").write_text("")
    (tmp_path / "in" / "picture.png").write_bytes(b"no text")
    assert run(tmp_path / "in", "--tokenizer", "bytes", "--out", tmp_path / "out", "--workers", 1) == 0
    assert tokens_of(tmp_path / "out").tolist() == expected(["first\r\n", "last \ufffd"])
    only = ("--suffixes", ".py,.md", "--out", tmp_path / "only")
    assert run(tmp_path / "in", "--tokenizer", "bytes", *only) == 0
    assert tokens_of(tmp_path / "only").tolist() == expected(["last \ufffd"])


def test_a_long_file_is_read_in_pieces_and_is_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PIECE", 50)
    text = "".join(f"line {number}\n" for number in range(40))
    (tmp_path / "a.txt").write_text(text)
    pieces = list(read_documents(str(tmp_path / "a.txt"), "text", 0))
    assert len(pieces) > 5
    assert all(piece.text.endswith("\n") and len(piece.text) < 60 for piece in pieces)
    assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert run(tmp_path / "a.txt", "--tokenizer", "bytes", "--out", tmp_path / "out", "--workers", 1) == 0
    assert tokens_of(tmp_path / "out").tolist() == expected([text])


def test_a_tokenizers_file_is_kept_with_the_shards(tmp_path: Path, rows: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(["?", "Document", "<eos>", ":"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(["<eos>"])
    made.save(str(tmp_path / "my.json"))
    (tmp_path / "a.txt").write_text("Document: <eos> Document")
    assert run(tmp_path / "a.txt", "--tokenizer", tmp_path / "my.json", "--out", tmp_path / "out") == 0
    # the name of the end token in a text is text, not the end of a document
    assert tokens_of(tmp_path / "out").tolist() == [1, 3, 0, 0, 0, 1, 2]
    manifest = TokenShards(tmp_path / "out").manifest
    assert (manifest.tokenizer, manifest.documents, manifest.vocab_size) == ("tokenizer.json", 1, 4)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "my.json").read_bytes()


def test_a_tiktoken_encoding(tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([i]): i for i in range(256)} | {b"en": 256}
    special = {"<|endoftext|>": 257}
    tiny = tiktoken.Encoding("tiny", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens=special)
    monkeypatch.setattr(tiktoken, "list_encoding_names", lambda: ["tiny"])
    monkeypatch.setattr(tiktoken, "get_encoding", {"tiny": tiny}.get)
    assert run(rows, "--tokenizer", "tiny", "--out", tmp_path / "out", "--workers", 1) == 0
    found = tokens_of(tmp_path / "out").tolist()
    ends = [place for place, token in enumerate(found) if token == 257]
    assert len(ends) == len(DOCUMENTS)
    assert found[: ends[0]] == tiny.encode_ordinary(DOCUMENTS[0])
    assert tiny.decode([token for token in found if token != 257]) == "".join(DOCUMENTS)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


SMALL_SHARDS = ("--tokenizer", "bytes", "--shard-tokens", 300)


def test_the_number_of_workers_makes_no_difference(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "CHUNK", 100)
    for workers in (1, 3):
        assert run(rows, *SMALL_SHARDS, "--out", tmp_path / str(workers), "--workers", workers) == 0
    one, three = content(tmp_path / "1"), content(tmp_path / "3")
    assert one == three
    assert len(TokenShards(tmp_path / "1").manifest.checksums) > 5
    assert tokens_of(tmp_path / "1").tolist() == expected(DOCUMENTS)


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["saved often", "saved at the interruption only"])
def test_it_goes_on_where_it_was_interrupted(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Interrupted in each chunk in turn, in the middle of what it writes."""
    monkeypatch.setattr(encode, "CHUNK", 100)
    assert run(rows, *SMALL_SHARDS, "--out", tmp_path / "whole", "--workers", 1) == 0
    monkeypatch.setattr(tokenize, "SAVE_SECONDS", seconds)
    original = tokenize.ShardWriter.write
    left = [0]

    def write(self: tokenize.ShardWriter, part: np.ndarray) -> None:
        left[0] -= 1
        if left[0] == 0:
            original(self, part[: len(part) // 2])
            raise KeyboardInterrupt
        original(self, part)

    monkeypatch.setattr(tokenize.ShardWriter, "write", write)
    interruptions = 0
    while True:
        left[0] = 4
        code = run(rows, *SMALL_SHARDS, "--out", tmp_path / "out", "--workers", 1)
        if code == 0:
            break
        assert code == 130
        interruptions += 1
    assert interruptions > 5
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def tokenize_slowly(rows: Path, out: Path) -> None:
    tokenize.CHUNK = 100  # type: ignore[misc]
    tokenize.SAVE_SECONDS = 0.0  # type: ignore[misc]
    save = tokenize.save

    def slow(*arguments: object) -> None:
        time.sleep(0.005)
        save(*arguments)  # type: ignore[arg-type]

    tokenize.save = slow
    main(["tokenize", str(rows), *map(str, SMALL_SHARDS), "--out", str(out), "--workers", "2"])


@pytest.mark.slow
def test_it_goes_on_after_sigkill_and_its_workers_end(tmp_path: Path, rows: Path) -> None:
    assert run(rows, *SMALL_SHARDS, "--out", tmp_path / "whole", "--workers", 1) == 0
    process = FORKS.Process(target=tokenize_slowly, args=(rows, tmp_path / "out"))
    process.start()
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("shard_*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    process.kill()
    process.join()
    assert not (tmp_path / "out" / MANIFEST).exists()
    while any(is_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(is_alive(pid) for pid in workers)
    assert run(rows, *SMALL_SHARDS, "--out", tmp_path / "out", "--workers", 1) == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def kill_this_worker(pieces: list[Piece], tokenizer: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_line(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[[int, str], None]
) -> None:
    monkeypatch.setattr(encode, "encode_pieces", kill_this_worker)
    code = run(rows, "--tokenizer", "bytes", "--out", tmp_path / "out", "--workers", 2)
    refused(code, "a worker was killed, out of memory perhaps: repeat the command, with fewer --workers")
    assert not (tmp_path / "out").exists()


def test_a_complete_folder_is_left_as_it_is_and_another_job_is_refused(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str], refused: Callable[[int, str], None]
) -> None:
    command = (rows, "--tokenizer", "bytes", "--out", tmp_path / "out", "--workers", 1)
    assert run(*command) == 0
    before = capsys.readouterr().out
    assert run(*command) == 0
    assert capsys.readouterr().out == before
    refused(run(*command, "--shard-tokens", 100), "was made of other sources or with other options")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    refused(
        run(rows, "--tokenizer", "bytes", "--out", tmp_path / "mine"),
        "neither empty nor a folder of token shards",
    )
    assert [path.name for path in (tmp_path / "mine").iterdir() if path.name != ".lock"] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("name", "text", "options", "hint"),
    [
        ("a.jsonl", '{"text": "x"}\n{"body": "x"}\n', [], "a.jsonl:2 has no 'text' but body: name the text"),
        ("a.jsonl", "no json\n", [], "a.jsonl:1 is no JSON"),
        ("a.jsonl.gz", "not compressed", [], "a.jsonl.gz cannot be read: Not a gzipped file"),
        ("a.parquet", "no table", [], "a.parquet is no Parquet file"),
        ("a.txt", "", [], "has no text"),
        ("a.txt", "x", ["--tokenizer", "none.json"], "--tokenizer none.json is no file"),
        ("a.txt", "x", ["--end-token", "</s>"], "--tokenizer bytes has an end token of its own: leave out"),
        ("a.txt", "x", ["--workers", "0"], "argument --workers: '0' is not an integer of at least 1"),
        ("a.png", "x", [".."], "required"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    tmp_path: Path, name: str, text: str, options: list[str], hint: str, refused: Callable[[int, str], None]
) -> None:
    (tmp_path / name).write_text(text)
    tokenizer = [] if options == [".."] else ["--tokenizer", "bytes"]
    refused(run(tmp_path / name, *tokenizer, "--out", tmp_path / "out", "--workers", "1", *options), hint)
    assert not (tmp_path / "out").exists()


def test_missing_sources(tmp_path: Path, refused: Callable[[int, str], None]) -> None:
    where = ("--tokenizer", "bytes", "--out", tmp_path / "out")
    refused(run(tmp_path / "none", *where), "none does not exist: name files, folders or hf:NAME")
    (tmp_path / "empty").mkdir()
    refused(run(tmp_path / "empty", *where), "empty has no files of text (.txt")


def test_verify_finds_a_changed_byte(
    tmp_path: Path, rows: Path, refused: Callable[[int, str], None], capsys
) -> None:
    assert run(rows, *SMALL_SHARDS, "--out", tmp_path / "out", "--workers", 1) == 0
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert re.search(r"as written, fingerprint [0-9a-f]{16}$", capsys.readouterr().out.strip())
    shard = tmp_path / "out" / "shard_00001.bin"
    shard.write_bytes(b"x" + shard.read_bytes()[1:])
    refused(main(["verify", str(tmp_path / "out")]), "shard_00001.bin is damaged")
