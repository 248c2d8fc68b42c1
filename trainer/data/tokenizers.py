"""Tokenizers by name or file: bytes, the encodings of tiktoken, and what the package tokenizers has written."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import ConfigError, DataError, MissingExtra, nearest, one_line

END_TOKENS = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]"]
"""Those by which the files of well-known models end a document, in the order in which they are looked for."""


@dataclass(frozen=True)
class Tokenizer:
    """How text becomes tokens and the other way round."""

    name: str
    """``bytes``, a name of tiktoken's, or the path of a file."""
    vocab_size: int
    """Tokens are less than this; the end token is one of them."""
    end_token: int
    """Follows each document."""
    hash: str
    """The same for tokenizers that give the same tokens."""
    encode: Callable[[list[str]], list[Any]]
    """Texts to their tokens, sequences of integers; names of special tokens in a text are text like any other."""
    decode: Callable[[list[int]], str]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest type on disk that holds its tokens."""
        return np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")


def load_tokenizer(name: str, where: str, end_token: str | int | None = None) -> Tokenizer:
    """The tokenizer of that name.

    Args:
        name: ``bytes``, a name of tiktoken's, or the path of a tokenizers file (``tokenizer.json``).
        where: the option that names it, for messages.
        end_token: the token that follows a document, or its number; None: the tokenizer's own.

    Raises:
        UserError: there is none of that name, its package is not installed, or it has no such end token.
    """
    if name == "bytes":
        if isinstance(end_token, str):
            raise ConfigError(f"{where}bytes has an end token of its own: leave out --end-token")
        return _bytes()
    if name.endswith(".json") or Path(name).is_file():
        return _from_file(Path(name), where, end_token)
    return _tiktoken(name, where, end_token)


def _bytes() -> Tokenizer:
    def encode(texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def decode(ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    return Tokenizer("bytes", 257, 256, _digest("bytes"), encode, decode)


def _from_file(path: Path, where: str, end_token: str | int | None) -> Tokenizer:
    try:
        from tokenizers import Tokenizer as File
    except ImportError:
        raise MissingExtra(f"{where}{path}", "tokenizers", "text") from None
    if not path.is_file():
        raise DataError(f"{where}{path} is no file: give the path of a tokenizer.json")
    try:
        file = File.from_file(str(path))
    except Exception as error:  # what its Rust code raises has no class of its own
        raise DataError(f"{where}{path} is no file of the package tokenizers: {one_line(error)}") from None
    file.no_truncation()
    file.no_padding()
    file.encode_special_tokens = True  # those in a text as what they are written with
    end = end_token if isinstance(end_token, int) else _find_end(file, end_token, f"{where}{path}")

    def encode(texts: list[str]) -> list[list[int]]:
        return [found.ids for found in file.encode_batch_fast(texts, add_special_tokens=False)]

    size = 1 + max(file.get_vocab(with_added_tokens=True).values())
    content = path.read_text(encoding="utf-8")
    return Tokenizer(str(path), size, end, _digest(content), encode, lambda ids: file.decode(ids, False))


def _find_end(file: Any, end_token: str | None, where: str) -> int:
    wanted = END_TOKENS if end_token is None else [end_token]
    for name in wanted:
        if (end := file.token_to_id(name)) is not None:
            return int(end)
    raise ConfigError(f"{where} has none of the tokens {' '.join(wanted)}: name its own by --end-token")


def _tiktoken(name: str, where: str, end_token: str | int | None) -> Tokenizer:
    encoding = load_encoding(name, where)
    if isinstance(end_token, int):
        end = end_token
    elif end_token is None:
        end = encoding.eot_token
    elif end_token in encoding.special_tokens_set:
        end = encoding.encode_single_token(end_token)
    else:
        known = nearest(end_token, encoding.special_tokens_set)
        raise ConfigError(f"{where}{name} has no special token {end_token}{known}")
    digest = _digest(f"{name} {encoding.n_vocab} {end} {encoding.token_byte_values()}")

    def encode(texts: list[str]) -> list[np.ndarray]:
        return [encoding.encode_to_numpy(text, disallowed_special=()) for text in texts]

    return Tokenizer(name, encoding.n_vocab, end, digest, encode, encoding.decode)


def load_encoding(name: str, where: str) -> Any:
    """The encoding of tiktoken's of that name, fetched from the network unless it is in tiktoken's cache.

    Raises:
        UserError: the package is not installed, it has no such encoding, or this cannot be fetched.
    """
    try:
        import tiktoken
    except ImportError:
        raise MissingExtra(f"{where}{name} (neither bytes nor a file)", "tiktoken", "text") from None
    if name not in (names := tiktoken.list_encoding_names()):
        raise ConfigError(f"unknown {where}{name}{nearest(name, ['bytes', *names])}")
    try:
        return tiktoken.get_encoding(name)
    except OSError as error:  # what requests raises is one
        raise DataError(
            f"{where}{name} cannot be fetched ({type(error).__name__}): set TIKTOKEN_CACHE_DIR to a folder that "
            "has it, or take bytes or a file"
        ) from None


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]
