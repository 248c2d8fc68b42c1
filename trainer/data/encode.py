"""Pieces of documents become tokens, in chunks, in this process or in several."""

import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import numpy as np

from trainer.data.documents import Piece, read_documents
from trainer.data.tokenizers import Tokenizer, load_tokenizer
from trainer.errors import DataError

CHUNK = 2**20
"""Characters that a worker tokenizes at a time; one row of a table where that is longer."""


class Chunk(NamedTuple):
    """Some pieces in a row."""

    source: int
    piece: int
    """The number of the first one in its source."""
    pieces: list[Piece]


class TokenizerSource(NamedTuple):
    """What a tokenizer is loaded from."""

    name: str
    end_token: str | None


def read_chunks(files: list[str], column: str, source: int, piece: int) -> Iterator[Chunk]:
    """The pieces of all files from a place on, in chunks of `CHUNK` characters or a little more."""
    chunk, size = Chunk(source, piece, []), 0
    for number in range(source, len(files)):
        start = piece if number == source else 0
        for place, read in enumerate(read_documents(files[number], column, start), start):
            if size >= CHUNK:
                yield chunk
                chunk, size = Chunk(number, place, []), 0
            chunk.pieces.append(read)
            size += len(read.text) + 1
    yield chunk


def encode_pieces(pieces: list[Piece], tokenizer: Tokenizer) -> np.ndarray:
    """The tokens of pieces, with the end token behind each document; those without text are left out."""
    pieces = [piece for piece in pieces if piece.text]
    end = np.array([tokenizer.end_token], dtype=tokenizer.dtype)
    parts = [end[:0]]
    for piece, ids in zip(pieces, tokenizer.encode([piece.text for piece in pieces]), strict=True):
        parts += [np.asarray(ids, dtype=tokenizer.dtype), end[: piece.ends]]
    return np.concatenate(parts)


def encode_chunks(
    chunks: Iterable[Chunk], tokenizer: Tokenizer, source: TokenizerSource, workers: int
) -> Generator[tuple[Chunk, np.ndarray], None, None]:
    """The chunks, in order, without their text, each with its tokens.

    Args:
        chunks: of `read_chunks`.
        tokenizer: for this process.
        source: from which each worker loads its own.
        workers: processes that tokenize; with 1 it is this one.

    Raises:
        DataError: a worker was killed.
    """
    if workers == 1:
        yield from ((chunk, encode_pieces(chunk.pieces, tokenizer)) for chunk in chunks)
        return
    pool = ProcessPoolExecutor(workers, get_context("fork"), initializer=_start_worker, initargs=source)
    waiting: deque = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk._replace(pieces=[]), pool.submit(_encode_in_worker, chunk.pieces)))
            if len(waiting) > 2 * workers:
                done, tokens = waiting.popleft()
                yield done, tokens.result()
        for done, tokens in waiting:
            yield done, tokens.result()
    except BrokenProcessPool:
        raise DataError(
            "a worker was killed, out of memory perhaps: repeat the command, with fewer --workers if need be"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_worker_tokenizer: Tokenizer | None = None


def _start_worker(name: str, end_token: str | None) -> None:
    """Leaves Ctrl-C to the first process, and ends with it, however that ends."""
    global _worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    _worker_tokenizer = load_tokenizer(name, "--tokenizer ", end_token)


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _encode_in_worker(pieces: list[Piece]) -> np.ndarray:
    assert _worker_tokenizer is not None
    return encode_pieces(pieces, _worker_tokenizer)
