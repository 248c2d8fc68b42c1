"""Tokens that are made once: by one of several processes, kept whole or not at all."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from trainer.data import text as texts
from trainer.data.token_cache import cache_folder, tokens_of

TEXT = "Ein Männlein steht im Walde. " * 50
EXPECTED = np.frombuffer(TEXT.encode(), dtype=np.uint8).astype(np.int32)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("trainer.data.token_cache.CACHED_FROM", 1000)
    return tmp_path / "cache" / "adafisher-trainer" / "tokens"


class Tokenize:
    """Counts how often it is called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, text: str) -> np.ndarray:
        self.calls += 1
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix != ".lock")


def test_a_second_call_reads_what_the_first_one_made(folder: Path) -> None:
    assert cache_folder() == folder
    tokenize = Tokenize()
    for _ in range(3):
        found = tokens_of(TEXT, "one", tokenize)
        assert found.dtype == np.int32
        assert np.array_equal(found, EXPECTED)
    assert tokenize.calls == 1
    assert len(files(folder)) == 1
    tokens_of(TEXT, "another", tokenize)
    tokens_of(TEXT + ".", "one", tokenize)
    assert tokenize.calls == 3
    assert len(files(folder)) == 3


def test_short_texts_are_not_kept(folder: Path) -> None:
    tokens_of(TEXT[:999], "one", Tokenize())
    assert not folder.exists()


def test_every_changed_byte_of_the_tokens_and_every_shorter_file_is_noticed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenize = Tokenize()
    tokens_of(TEXT, "one", tokenize)
    [path] = files(folder)
    whole = path.read_bytes()
    first = whole.index(EXPECTED[:8].tobytes())
    damaged = [whole[:cut] for cut in (0, 1, first, len(whole) // 2, len(whole) - 1)]
    for place in (0, first, first + 1, first + EXPECTED.nbytes // 2, first + EXPECTED.nbytes - 4):
        damaged.append(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
    for calls, content in enumerate(damaged, 2):
        path.write_bytes(content)
        assert np.array_equal(tokens_of(TEXT, "one", tokenize), EXPECTED)
        assert tokenize.calls == calls
        warning = capsys.readouterr().err
        assert warning.startswith(f"warning: {path} is damaged and made anew: ")
        assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.parent.parent.write_text("a file is in the way")
    assert np.array_equal(tokens_of(TEXT, "one", Tokenize()), EXPECTED)
    warning = capsys.readouterr().err
    assert f"warning: {folder} keeps no tokens (" in warning
    assert warning.endswith("set XDG_CACHE_HOME to a folder that can be written\n")
    folder.parent.parent.unlink()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    tokenize = Tokenize()
    assert np.array_equal(tokens_of(TEXT, "one", tokenize), EXPECTED)
    assert tokenize.calls == 1
    assert "No space left on device" in capsys.readouterr().err
    assert files(folder) == []


PROCESS = """
import sys, time
from pathlib import Path
import numpy as np
from trainer.data import token_cache

token_cache.CACHED_FROM = 0

def tokenize(text):
    with open(sys.argv[1], "a") as file:
        file.write("made ")
    time.sleep(float(sys.argv[2]))
    return np.arange(1000)

assert token_cache.tokens_of("text", "one", tokenize).sum() == 499500
"""


def process(log: Path, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROCESS, str(log), str(seconds)])


def test_of_several_processes_one_tokenizes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [process(log, 2) for _ in range(3)]
    assert [each.wait(300) for each in processes] == [0, 0, 0]
    assert log.read_text() == "made "


def test_a_process_that_is_killed_leaves_the_work_to_the_next(tmp_path: Path, folder: Path) -> None:
    log = tmp_path / "log"
    first = process(log, 1000)
    while not log.exists():
        assert first.poll() is None
        time.sleep(0.01)
    second = process(log, 0)
    first.kill()
    first.wait()
    assert second.wait(300) == 0
    assert log.read_text() == "made made "
    assert len(files(folder)) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_permission_is_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    assert np.array_equal(tokens_of(TEXT, "one", Tokenize()), EXPECTED)
    assert "keeps no tokens" in capsys.readouterr().err


def test_texts_of_bytes_and_characters_are_not_kept(folder: Path) -> None:
    for tokenizer in ("bytes", "chars"):
        texts.encode_all([TEXT.encode()], tokenizer, None)
    assert not folder.exists()


def test_three_files_are_kept_one_by_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([i]): i for i in range(256)}
    tiny = tiktoken.Encoding("tiny", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr(tiktoken, "list_encoding_names", lambda: ["tiny"])
    monkeypatch.setattr(tiktoken, "get_encoding", {"tiny": tiny}.get)
    contents = [part.encode() for part in (TEXT, TEXT[1:], TEXT[2:])]
    made = texts.encode_all(contents, "tiny", None)
    assert len(files(folder)) == 3
    monkeypatch.setattr(tiny, "encode_to_numpy", None)
    read = texts.encode_all(contents, "tiny", None)
    for content, one, two in zip(contents, made[0], read[0], strict=True):
        assert one.tolist() == two.tolist() == list(content)
