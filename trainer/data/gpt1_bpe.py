"""GPT-1's tokens: byte pairs of lower-cased words, of which the last piece ends in ``</w>``."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from trainer.errors import DataError, MissingExtra, one_line

FILES = ("vocab.json", "merges.txt")
UNKNOWN = "<unk>"
PIECE = 2**16
"""Characters that are encoded at a time, up to the next end of a line."""


def load_bpe(folder: str) -> tuple[Callable[[str], np.ndarray], Callable[[list[int]], str], int, str]:
    """Reads GPT-1's vocabulary and its merges, in the order in which they are applied.

    A text loses capitals, accents and all white space: its words are what spaces and punctuation separate, and
    ``<unk>`` is a word of its own.

    Args:
        folder: holds ``vocab.json`` (tokens with their numbers) and ``merges.txt``.

    Returns:
        How to encode (to int32 [L]) and decode; the number of tokens, 40,478 of OpenAI's files; and a name of all that,
        another one if the tokens of a text may be others.

    Raises:
        MissingExtra: the package tokenizers is not installed.
        DataError: the files are missing or damaged.
    """
    try:
        from tokenizers import Tokenizer, __version__, decoders, models, normalizers, pre_tokenizers
    except ImportError:
        raise MissingExtra(f"data.tokenizer={folder}, a folder,", "tokenizers", "text") from None
    paths = [str(Path(folder, name)) for name in FILES]
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise DataError(
            f"{missing[0]} is missing: data.tokenizer={folder} must hold GPT-1's {' and '.join(FILES)}"
        )
    try:
        bpe = models.BPE.from_file(*paths, unk_token=UNKNOWN, end_of_word_suffix="</w>")
    except Exception as error:  # what its Rust code raises has no class of its own
        raise DataError(f"data.tokenizer={folder} holds no byte pairs: {one_line(error)}") from None
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    if tokenizer.token_to_id(UNKNOWN) is not None:
        tokenizer.add_special_tokens([UNKNOWN])

    def encode(text: str) -> np.ndarray:
        found = (tokenizer.encode(piece, add_special_tokens=False) for piece in pieces_of(text))
        return np.concatenate([np.array(piece.ids, dtype=np.int32) for piece in found])

    def decode(ids: list[int]) -> str:
        text: str = tokenizer.decode(ids, skip_special_tokens=False)
        return text

    digest = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    return encode, decode, tokenizer.get_vocab_size(), f"tokenizers {__version__} {digest}"


def pieces_of(text: str) -> Iterator[str]:
    """A text in pieces between lines, where no word is cut: of a whole one the package needs 200 bytes a character."""
    start = 0
    while (end := text.find("\n", start + PIECE)) >= 0:
        yield text[start:end]
        start = end
    yield text[start:]
