"""From documents to token shards, by several processes, so that it can be interrupted and gone on with.

Memory: a process holds its tokenizer and a chunk of a million characters, or one row of a table where that is longer,
with its tokens; two chunks a process wait to be written. The number and the size of the files make no difference.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from trainer.data.documents import HUB, TABLES, TEXT, expand
from trainer.data.encode import Chunk, TokenizerSource, encode_chunks, read_chunks
from trainer.data.out_folder import PROGRESS, locked
from trainer.data.shard_writer import PART, ShardWriter
from trainer.data.shards import MANIFEST, TOKENIZER_FILE, Manifest, read_manifest
from trainer.data.tokenizers import Tokenizer, load_tokenizer
from trainer.errors import DataError, UserError, one_line
from trainer.rundir.files import (
    FORMAT,
    atomic_path,
    atomic_write_text,
    check_format,
)
from trainer.rundir.lock import LOCK

SAVE_SECONDS = 10.0
"""Between two notes of how far it has come."""
SHARD_TOKENS = 2**26


@dataclass(frozen=True)
class Job:
    """What is to be tokenized, and how."""

    sources: list[str]
    """As the user named them."""
    tokenizer: str
    out: Path
    column: str = "text"
    end_token: str | None = None
    suffixes: Sequence[str] = TEXT + TABLES
    """Of the files that are taken of a folder."""
    shard_tokens: int = SHARD_TOKENS

    def identity(self, files: list[str], tokenizer: Tokenizer) -> str:
        """Names the tokens that come of it: another one does not go on in the same folder."""
        sizes = [None if file.startswith(HUB) else Path(file).stat().st_size for file in files]
        content = [files, sizes, tokenizer.hash, tokenizer.end_token, self.column, self.shard_tokens]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Progress:
    """How far a job has come: the source and the piece in it at which it goes on."""

    identity: str
    source: int = 0
    piece: int = 0
    skip: int = 0
    """Tokens from there on that are written already."""
    tokens: int = 0
    documents: int = 0
    checksums: list[str] = field(default_factory=list)
    """Of the shards that are full."""
    format: int = FORMAT


def tokenize(job: Job, workers: int, report: Callable[[int, int, int], None]) -> Manifest:
    """Tokenizes documents into a folder of shards, from where an interrupted call has saved its progress.

    The folder is the same to the byte for any number of workers and interruptions.

    Args:
        job: what to do.
        workers: processes that tokenize; with 1 it is this one.
        report: called with the number of sources, of those that are done, and of tokens, now and then.

    Raises:
        UserError: a source cannot be read, the folder is of another job, or a package is missing.
    """
    try:
        return _tokenize(job, workers, report)
    except OSError as error:  # of the folder; a source that cannot be read is a DataError
        raise UserError(f"--out {job.out} cannot be written: {one_line(error)}") from None


def _tokenize(job: Job, workers: int, report: Callable[[int, int, int], None]) -> Manifest:
    tokenizer = load_tokenizer(job.tokenizer, "--tokenizer ", job.end_token)
    files = expand(job.sources, job.suffixes)
    progress = Progress(job.identity(files, tokenizer))
    with locked(job.out, lambda: is_unused(job.out), PART):
        if (begun := begin(job.out, progress)) is None:
            return read_manifest(job.out, "--out ")
        writer = ShardWriter(job.out, tokenizer.dtype, job.shard_tokens, begun.checksums, begun.tokens)
        chunks = read_chunks(files, job.column, begun.source, begun.piece)
        source = TokenizerSource(job.tokenizer, job.end_token)
        with closing(encode_chunks(chunks, tokenizer, source, workers)) as encoded:
            done = write(
                encoded, tokenizer.end_token, writer, begun, lambda source, n: report(len(files), source, n)
            )
        if not done.tokens:
            raise DataError(f"{' '.join(job.sources)} has no text")
        return finish(job, tokenizer, writer, done)


def is_unused(folder: Path) -> bool:
    """Whether no tokens were saved in a folder."""
    saved = folder / PROGRESS
    return saved.exists() and not json.loads(saved.read_text())["tokens"]


def begin(folder: Path, new: Progress) -> Progress | None:
    """The progress that was saved in a folder, or none yet; None if it is complete.

    Raises:
        UserError: the folder is of another job, or holds something else.
    """
    if (folder / MANIFEST).exists():
        found, begun = read_manifest(folder, "--out ").identity, None
    elif (folder / PROGRESS).exists():
        saved = json.loads((folder / PROGRESS).read_text())
        check_format(saved, folder / PROGRESS)
        begun = Progress(**saved)
        found = begun.identity
    elif [path.name for path in folder.iterdir() if path.name not in (LOCK, PART)]:
        raise UserError(f"--out {folder} is neither empty nor a folder of token shards: choose another")
    else:
        atomic_write_text(folder / PROGRESS, json.dumps(asdict(new)))
        return new
    if found != new.identity:
        raise UserError(
            f"--out {folder} was made of other sources or with other options: repeat those, or choose another --out"
        )
    return begun


def write(
    encoded: Iterable[tuple[Chunk, np.ndarray]],
    end_token: int,
    writer: ShardWriter,
    progress: Progress,
    report: Callable[[int, int], None],
) -> Progress:
    """Writes tokens and notes how far they go: every few seconds, and where it is interrupted."""
    saved_at = time.monotonic()
    skip = progress.skip  # of the first chunk
    try:
        for chunk, tokens in encoded:
            writer.write(tokens[skip:])
            progress = replace(  # at once, wherever Ctrl-C may come
                progress,
                source=chunk.source,
                piece=chunk.piece,
                skip=len(tokens),
                tokens=writer.tokens,
                documents=progress.documents + int(np.count_nonzero(tokens[skip:] == end_token)),
                checksums=list(writer.checksums),
            )
            skip = 0
            report(chunk.source, writer.tokens)
            if time.monotonic() - saved_at > SAVE_SECONDS:
                save(writer, progress)
                saved_at = time.monotonic()
    finally:
        save(writer, progress)
    return progress


def save(writer: ShardWriter, progress: Progress) -> None:
    """Puts the tokens on the disk, then the note of them."""
    writer.save()
    atomic_write_text(writer.folder / PROGRESS, json.dumps(asdict(progress)))


def finish(job: Job, tokenizer: Tokenizer, writer: ShardWriter, progress: Progress) -> Manifest:
    """Completes the folder."""
    writer.close()
    name = tokenizer.name
    if Path(name).is_file():
        with atomic_path(job.out / TOKENIZER_FILE) as part:
            shutil.copyfile(name, part)
        name = TOKENIZER_FILE
    manifest = Manifest(
        tokens=writer.tokens,
        documents=progress.documents,
        shard_tokens=job.shard_tokens,
        dtype=tokenizer.dtype.str,
        vocab_size=tokenizer.vocab_size,
        end_token=tokenizer.end_token,
        tokenizer=name,
        tokenizer_hash=tokenizer.hash,
        checksums=writer.checksums,
        identity=progress.identity,
    )
    manifest.write(job.out)
    (job.out / PROGRESS).unlink()
    return manifest
