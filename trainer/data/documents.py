"""Documents, one after the other: of text files, JSON lines, Parquet, and what the package datasets loads."""

import gzip
import importlib
import io
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from trainer.errors import DataError, MissingExtra, one_line

HUB = "hf:"
"""Begins a source that the package datasets loads: ``hf:NAME``, ``hf:NAME:CONFIG`` or ``hf:NAME:CONFIG:SPLIT``."""
COMPRESSED = (".gz", ".zst")
TABLES = (".jsonl", ".ndjson", ".parquet")
TEXT = (".txt", ".md", ".rst", ".py", ".html", ".tex", ".text")
"""With `TABLES`, what is taken of a folder; a file that is named itself may be called anything, and is text then."""
PIECE = 2**20
"""Characters of a text file that are read at a time: a longer one comes in pieces, which end with a line if that ends
within as many again."""


class Piece(NamedTuple):
    """A document, or a part of a long one."""

    text: str
    ends: bool
    """Whether it is the document's last piece."""


def expand(sources: list[str], suffixes: Sequence[str]) -> list[str]:
    """The files of sources, in order: those of a folder by their paths; ``hf:`` sources as they are.

    Args:
        sources: files, folders and ``hf:`` sources.
        suffixes: of the files that are taken of a folder, as `kind_of` names them.

    Raises:
        DataError: a source does not exist, or a folder has no text in it.
    """
    found = []
    for source in sources:
        place = Path(source)
        if source.startswith(HUB) or place.is_file():
            found.append(source)
        elif place.is_dir():
            files = sorted(
                str(path) for path in place.rglob("*") if kind_of(path) in suffixes and path.is_file()
            )
            if not files:
                raise DataError(f"{source} has no files of text ({' '.join(suffixes)})")
            found += files
        else:
            raise DataError(f"{source} does not exist: name files, folders or hf:NAME")
    return found


def kind_of(path: Path) -> str:
    """The suffix that says what is in a file, without that of its compression: ``.jsonl`` of ``a.jsonl.gz``."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_documents(source: str, column: str, start: int) -> Iterator[Piece]:
    """The pieces of a source from that number on.

    Args:
        source: one that `expand` gave.
        column: of tables, the one with the text.
        start: pieces that are left out.

    Raises:
        UserError: the source cannot be read, or a package is missing that it needs.
    """
    kind = kind_of(Path(source))
    try:
        if source.startswith(HUB):
            yield from whole(_hub(source, column, start))
        elif kind == ".parquet":
            yield from whole(_parquet(source, column, start))
        elif kind in (".jsonl", ".ndjson"):
            yield from whole(itertools.islice(_json_lines(source, column), start, None))
        else:
            yield from itertools.islice(_text(source), start, None)
    except (OSError, EOFError, zlib.error) as error:  # the latter two of a damaged .gz
        raise DataError(f"{source} cannot be read: {one_line(error)}") from None


def whole(texts: Iterator[Any]) -> Iterator[Piece]:
    """Each text as a document; a value that is no text as an empty one."""
    for text in texts:
        yield Piece(clean(text) if isinstance(text, str) else "", True)


def clean(text: str) -> str:
    """The text, with what no encoding can write (halves of surrogate pairs, which JSON may have) replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


@contextmanager
def open_text(path: str) -> Iterator[IO[str]]:
    """A text file, decompressed by its suffix; what is not UTF-8 is replaced."""
    if path.endswith(".gz"):
        with gzip.open(path, "rt", encoding="utf-8", errors="replace", newline="") as file:
            yield file
    elif path.endswith(".zst"):
        zstandard = package("zstandard", path)
        with (
            open(path, "rb") as raw,
            zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as plain,
        ):
            try:
                yield io.TextIOWrapper(plain, encoding="utf-8", errors="replace", newline="")
            except zstandard.ZstdError as error:
                raise OSError(one_line(error)) from None
    else:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            yield file


def _text(path: str) -> Iterator[Piece]:
    with open_text(path) as file:
        text = file.read(PIECE)
        while text:
            text += file.readline(PIECE) if len(text) >= PIECE else ""
            following = file.read(PIECE)
            yield Piece(text, not following)
            text = following


def _json_lines(path: str, column: str) -> Iterator[Any]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number} is no JSON ({one_line(error)})") from None
            if not isinstance(record, dict) or column not in record:
                keys = ", ".join(map(str, record)) if isinstance(record, dict) else "no keys"
                raise DataError(f"{path}:{number} has no {column!r} but {keys}: name the text by --column")
            yield record[column]


def _parquet(path: str, column: str, start: int) -> Iterator[Any]:
    parquet = package("pyarrow.parquet", path)
    try:
        file = parquet.ParquetFile(path)
    except ValueError as error:  # pyarrow's ArrowInvalid is one
        raise DataError(f"{path} is no Parquet file: {one_line(error)}") from None
    with file:
        if column not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            raise DataError(f"{path} has no {column!r} but {names}: name the text by --column")
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if start >= rows:
                start -= rows
                continue
            for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=[column]):
                yield from batch.column(0).to_pylist()[start:]
                start = max(0, start - batch.num_rows)


def _hub(source: str, column: str, start: int) -> Iterator[Any]:
    datasets = package("datasets", source)
    name, *rest = source.removeprefix(HUB).split(":")
    config, split = ([part or None for part in rest] + [None, None])[:2]
    try:
        rows = datasets.load_dataset(name, config, split=split or "train", streaming=True)
    except Exception as error:  # of the package, the network, the file system
        raise DataError(
            f"{source} cannot be loaded ({type(error).__name__}): {one_line(error)[:200]}"
        ) from None
    for row in rows.skip(start):
        if column not in row:
            raise DataError(f"{source} has no {column!r} but {', '.join(row)}: name the text by --column")
        yield row[column]


def package(name: str, source: str) -> Any:
    """A package that only some sources need.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtra(source, name.partition(".")[0], "text") from None
