"""Text from files, as bytes, characters or the tokens of a tiktoken encoding, packed to a fixed length."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from trainer.data.base import DATA, Data, digest
from trainer.data.tokens import PackedTokens
from trainer.errors import ConfigError, DataError, MissingExtra, nearest
from trainer.options import MAY_DIFFER, Count, Range

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
    content = read_text(path)
    if tokenizer == "bytes":
        tokens, vocab_size, encode, decode = encode_bytes(content)
    else:
        characters = _characters(content, path)
        tokenize = encode_chars if tokenizer == "chars" else _tiktoken(tokenizer)
        tokens, vocab_size, encode, decode = tokenize(characters)
    cut = len(tokens) - round(len(tokens) * val_fraction)
    splits = {"train": tokens[:cut], "val": tokens[cut:]}
    for name, part in splits.items():
        if len(part) <= context_length:
            raise DataError(
                f"data.path={path} leaves {len(part)} tokens to the split {name}, a sample needs "
                f"data.context_length + 1 = {context_length + 1}: take a longer text or a shorter context"
            )
    return Data(
        train=PackedTokens(splits["train"], context_length, device),
        evals={"val": PackedTokens(splits["val"], context_length, device)},
        model_defaults={"vocab_size": vocab_size, "context_length": context_length},
        kind="tokens",
        encode=encode,
        decode=decode,
        fingerprint={"text": f"{len(content)} bytes {digest(content)}"},
    )


def read_text(path: str | None) -> bytes:
    """The content of a file, or of all .txt files in and below a folder, joined by line ends.

    Raises:
        ConfigError: there is no path.
        DataError: nothing is there, or it cannot be read.
    """
    if path is None:
        raise ConfigError("data.path is required: a text file, or a folder of .txt files")
    place = Path(path)
    files = sorted(place.rglob("*.txt")) if place.is_dir() else [place]
    if not files:
        raise DataError(f"data.path={path} has no .txt files: name a text file, or a folder of .txt files")
    try:
        return b"\n".join(file.read_bytes() for file in files)
    except OSError as error:
        raise DataError(
            f"data.path={path} cannot be read ({error.strerror}): name a text file, or a folder of .txt files"
        ) from None


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
    vocabulary, tokens = np.unique(points, return_inverse=True)
    characters = [chr(point) for point in vocabulary]
    numbers = {character: number for number, character in enumerate(characters)}

    def encode(text: str) -> Tensor:
        if unknown := sorted(set(text) - numbers.keys()):
            raise ValueError(f"has {unknown[0]!r}, which does not occur in the data")
        return torch.tensor([numbers[character] for character in text])

    def decode(ids: Tensor) -> str:
        return "".join(characters[i] for i in ids.tolist())

    return tokens.astype(np.int32), len(characters), encode, decode


def _tiktoken(name: str) -> Callable[[str], Encoded]:
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

    def encode(text: str) -> Tensor:
        return torch.tensor(encoding.encode_ordinary(text))

    def tokenize(content: str) -> Encoded:
        tokens = np.array(encoding.encode_ordinary(content), dtype=np.int32)
        return tokens, encoding.n_vocab, encode, lambda ids: encoding.decode(ids.tolist())

    return tokenize
