"""Text from files, as bytes, characters or the tokens of GPT-1 or a tiktoken encoding, packed to a fixed length."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from trainer.data.base import DATA, Data, digest
from trainer.data.gpt1_bpe import load_bpe
from trainer.data.token_cache import tokens_of
from trainer.data.tokens import PackedTokens
from trainer.errors import ConfigError, DataError, MissingExtra, nearest
from trainer.options import MAY_DIFFER, Count, Range

SPLIT_NAMES = {
    "train": "train",
    "valid": "val",
    "val": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
Encode = Callable[[str], Tensor]
Decode = Callable[[Tensor], str]
Encoded = tuple[np.ndarray, int, Encode, Decode]
"""The tokens (integers [L]), the size of the vocabulary, the same for other texts, and the way back."""


@DATA.register("text")
def text(
    device: torch.device,
    seed: int,
    *,
    path: Annotated[str | None, MAY_DIFFER] = None,
    tokenizer: str = "chars",
    context_length: Count = 256,
    val_fraction: Annotated[float, Range(gt=0, lt=1)] = 0.1,
) -> Data:
    """A file, or a folder's .txt files in the order of their names; the end of it is what is evaluated on."""
    [tokens], *vocabulary = encode_all([read_text(path)], tokenizer, path)
    cut = len(tokens) - round(len(tokens) * val_fraction)
    return pack({"train": tokens[:cut], "val": tokens[cut:]}, vocabulary, context_length, path, device)


def pack(
    splits: dict[str, np.ndarray],
    vocabulary: Sequence[Any],
    context_length: int,
    path: str | None,
    device: torch.device,
) -> Data:
    """Cuts the tokens of the splits into samples.

    Args:
        splits: tokens (integers [L]) by name, "train" among them.
        vocabulary: the other parts of what `encode_all` returns.
        context_length: tokens of a sample.
        path: where the text is from, for messages.
        device: where the samples will live.

    Raises:
        DataError: a split has not enough tokens for one sample.
    """
    vocab_size, encode, decode = vocabulary
    for name, part in splits.items():
        if len(part) <= context_length:
            raise DataError(
                f"data.path={path} leaves {len(part)} tokens to the split {name}, a sample needs "
                f"data.context_length + 1 = {context_length + 1}: take a longer text or a shorter context"
            )
    samples = {name: PackedTokens(part, context_length, device) for name, part in splits.items()}
    return Data(
        train=samples.pop("train"),
        evals={**samples},
        model_defaults={"vocab_size": vocab_size, "context_length": context_length},
        kind="tokens",
        encode=encode,
        decode=decode,
        fingerprint={
            f"{name} text": f"{len(part)} tokens {digest(part.tobytes())}" for name, part in splits.items()
        },
    )


def read_text(path: str | None) -> bytes:
    """The content of a file, or of all .txt files in and below a folder, joined by line ends.

    Raises:
        ConfigError: there is no path.
        DataError: nothing is there, it cannot be read, or it is a data set with splits of its own.
    """
    if path is None:
        raise ConfigError("data.path is required: a text file, or a folder of .txt files")
    place = Path(path)
    files = sorted(place.rglob("*.txt")) if place.is_dir() else [place]
    if not files:
        raise DataError(f"data.path={path} has no .txt files: name a text file, or a folder of .txt files")
    names = {split_of(file): file.name for file in files}
    held_out = names.get("test") or names.get("val")
    if "train" in names and held_out:
        raise DataError(
            f"data.path={path} has {names['train']} and {held_out}, which data=text would join: take "
            f"data=text_splits, or name one file"
        )
    return b"\n".join(map(read_file, files))


def read_file(path: Path) -> bytes:
    """The content of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"data.path={path} cannot be read ({error.strerror}): name a text file, or a folder of .txt files"
        ) from None


def split_of(path: Path) -> str | None:
    """The split that a file's name says it is: of ``wiki.train.tokens`` "train", of ``ptb.valid.txt`` "val"."""
    words = re.split(r"[\W_]+", path.stem.lower() if path.suffix == ".txt" else path.name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def encode_all(
    contents: list[bytes], tokenizer: str, path: str | None
) -> tuple[list[np.ndarray], int, Encode, Decode]:
    """The tokens of each of several texts, by one vocabulary, and the rest of an `Encoded`.

    Raises:
        UserError: a text is not UTF-8, there is no such tokenizer, or its package is not installed.
    """
    if tokenizer == "bytes":
        parts = [encode_bytes(content) for content in contents]
        return [part[0] for part in parts], *parts[0][1:]
    texts = [_characters(content, path) for content in contents]
    if tokenizer == "chars":
        tokens, vocab_size, encode, decode = encode_chars("".join(texts))
        ends = np.cumsum([len(text) for text in texts])
        return np.split(tokens, ends[:-1]), vocab_size, encode, decode
    is_folder = Path(tokenizer).is_dir() or os.sep in tokenizer
    subwords = _gpt1(tokenizer) if is_folder else _tiktoken(tokenizer)
    sequences = [tokens_of(text, subwords.identity, subwords.tokenize) for text in texts]
    return sequences, subwords.vocab_size, subwords.encode, subwords.decode


def _characters(content: bytes, path: str | None) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"data.path={path} is not UTF-8 (byte {error.start}): data.tokenizer=bytes takes any file"
        ) from None


def encode_bytes(content: bytes) -> Encoded:
    """Each byte is a token."""
    tokens = np.frombuffer(bytearray(content), dtype=np.uint8)

    def encode(text: str) -> Tensor:
        return torch.tensor(list(text.encode()))

    return tokens, 256, encode, lambda ids: bytes(ids.tolist()).decode("utf-8", errors="replace")


def encode_chars(content: str) -> Encoded:
    """Each character is a token; the vocabulary are the characters that occur, in the order of Unicode."""
    points = np.frombuffer(content.encode("utf-32-le"), dtype=np.uint32)
    occurs = np.zeros(sys.maxunicode + 1, dtype=bool)
    occurs[points] = True
    vocabulary = np.flatnonzero(occurs)
    tokens = (np.cumsum(occurs, dtype=np.int32) - 1)[points]
    characters = [chr(point) for point in vocabulary]
    numbers = {character: number for number, character in enumerate(characters)}

    def encode(text: str) -> Tensor:
        if unknown := sorted(set(text) - numbers.keys()):
            raise ValueError(f"has {unknown[0]!r}, which does not occur in the data")
        return torch.tensor([numbers[character] for character in text])

    def decode(ids: Tensor) -> str:
        return "".join(characters[i] for i in ids.tolist())

    return tokens, len(characters), encode, decode


@dataclass(frozen=True)
class Subwords:
    """A tokenizer whose work takes long enough to be kept."""

    identity: str
    """Another one if it may give other tokens."""
    vocab_size: int
    tokenize: Callable[[str], np.ndarray]
    """Text to tokens, integers [L]."""
    decode: Decode

    def encode(self, text: str) -> Tensor:
        """As `tokenize`, int64 [L]."""
        return torch.from_numpy(self.tokenize(text).astype(np.int64))


def _gpt1(folder: str) -> Subwords:
    """How GPT-1 encodes, by the files in a folder."""
    to_ids, to_text, vocab_size, identity = load_bpe(folder)

    return Subwords(identity, vocab_size, to_ids, lambda ids: to_text(ids.tolist()))


def _tiktoken(name: str) -> Subwords:
    """How a tiktoken encoding encodes; fetched from the network unless it is in tiktoken's cache."""
    try:
        import tiktoken
    except ImportError:
        raise MissingExtra(f"data.tokenizer={name} (neither bytes nor chars)", "tiktoken", "text") from None
    if name not in (names := tiktoken.list_encoding_names()):
        raise ConfigError(f"unknown data.tokenizer {name!r}{nearest(name, ['bytes', 'chars', *names])}")
    try:
        encoding = tiktoken.get_encoding(name)
    except OSError as error:  # what requests raises is one
        raise DataError(
            f"data.tokenizer={name} cannot be fetched ({type(error).__name__}): set TIKTOKEN_CACHE_DIR to a "
            "folder that has it, or take bytes or chars"
        ) from None

    def tokenize(text: str) -> np.ndarray:
        return encoding.encode_to_numpy(text, disallowed_special=()).astype(np.int32)

    identity = f"tiktoken {tiktoken.__version__} {name}"  # which checks the content of its encodings
    return Subwords(identity, encoding.n_vocab, tokenize, lambda ids: encoding.decode(ids.tolist()))
