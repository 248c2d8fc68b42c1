"""``python -m trainer.data``: prepares data sets for training."""

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trainer.cli.common import Parser, count, exit_code
from trainer.data.documents import TABLES, TEXT
from trainer.data.image_pack import PackManifest, is_pack, verify_pack
from trainer.data.machine import available_cores
from trainer.data.pack import SHARD_MIB, pack
from trainer.data.shards import Manifest, TokenShards, checksum, shard_path
from trainer.data.tokenize import SHARD_TOKENS, Job, tokenize
from trainer.errors import DataError
from trainer.formatting import counted, memory
from trainer.rundir.status import FINISHED, INTERRUPTED


def parser() -> Parser:
    """The parser of the command's arguments."""
    parser = Parser(prog="python -m trainer.data", description="Prepares data sets for training.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_tokenize(commands)
    add_pack(commands)
    command = commands.add_parser(
        "verify", help="check folders of token shards and packs against their checksums"
    )
    command.set_defaults(run=run_verify)
    command.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="as written by tokenize or pack"
    )
    return parser


def add_tokenize(commands: Any) -> None:
    """Adds the arguments of ``tokenize`` to the parsers of all commands."""
    command = commands.add_parser(
        "tokenize",
        help="text to token shards, which data=tokens trains on",
        description="Tokenizes documents into a folder of token shards, for data=tokens data.path=DIR. A file of "
        "text is a document, a row of JSON lines (.jsonl) or of Parquet is one; .gz and .zst are unpacked. "
        "Interrupted by Ctrl-C or killed, the same command goes on where it was; its result is the same.",
    )
    command.set_defaults(run=run_tokenize)
    command.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a file, a folder, or hf:NAME[:CONFIG[:SPLIT]] (package datasets)",
    )
    command.add_argument(
        "--tokenizer",
        required=True,
        metavar="NAME|FILE",
        help="bytes, an encoding of tiktoken such as gpt2, or a tokenizer.json of the package tokenizers",
    )
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder of the shards")
    command.add_argument(
        "--workers",
        type=count,
        default=available_cores(),
        metavar="N",
        help="processes that tokenize (default: one a core, %(default)s)",
    )
    command.add_argument(
        "--column", default="text", help="of tables: the one with the documents (default: %(default)s)"
    )
    command.add_argument(
        "--suffixes",
        type=lambda text: text.split(","),
        default=[*TEXT, *TABLES],
        metavar=".A,.B",
        help="of the files that are taken of a folder (default: those of text, JSON lines and Parquet)",
    )
    command.add_argument(
        "--end-token", metavar="TOKEN", help="put behind each document (default: the tokenizer's own)"
    )
    command.add_argument(
        "--shard-tokens",
        type=count,
        default=SHARD_TOKENS,
        metavar="N",
        help="of a shard (default: %(default)s)",
    )


def add_pack(commands: Any) -> None:
    """Adds the arguments of ``pack``."""
    command = commands.add_parser(
        "pack",
        help="an image folder to a few tar files, which data=image_folder data.path=DIR trains on",
        description="Packs the pictures of an image folder (train/CLASS and val/CLASS, or Tiny-ImageNet's layout), as "
        "they are, into tar files in webdataset's layout, with an index, for data=image_folder data.path=DIR. "
        "Interrupted by Ctrl-C or killed, the same command goes on with the first tar file that is not whole.",
    )
    command.set_defaults(run=run_pack)
    command.add_argument("folder", type=Path, metavar="FOLDER", help="it has the folders train and val")
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder of the pack")
    command.add_argument(
        "--shard-mib",
        type=count,
        default=SHARD_MIB,
        metavar="N",
        help="MiB of a tar file (default: %(default)s)",
    )


class Display:
    """A progress bar on standard error, if that is a terminal, from the first report on.

    Args:
        title: what is done.
    """

    def __init__(self, title: str) -> None:
        console = Console(stderr=True)
        columns = [
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        ]
        self.bar = Progress(
            *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self.task = self.bar.add_task("", note="", start=False)
        self.first: tuple[float, int] | None = None

    def tokens(self, total: int, done: int, tokens: int) -> None:
        """Shows how many sources are done, of how many, and the tokens of them."""
        self.start(tokens)
        assert self.first is not None
        seconds = max(time.monotonic() - self.first[0], 1e-3)
        rate = f"{tokens / 1e6:,.1f} M tokens, {(tokens - self.first[1]) / seconds / 1e6:.2f} M/s"
        self.bar.update(self.task, total=total, completed=done, note=f"sources, {rate}")

    def files(self, total: int, done: int) -> None:
        """Shows how many tar files are done, of how many."""
        self.start(done)
        self.bar.update(self.task, total=total, completed=done, note="tar files")

    def start(self, count: int) -> None:
        """Shows the bar, if this is the first report, with a count from which a rate is taken."""
        if self.first is None:  # not before, as its thread would be there when the workers are forked
            self.first = (time.monotonic(), count)
            self.bar.start()
            self.bar.start_task(self.task)

    def close(self) -> None:
        """Removes the bar."""
        self.bar.stop()


def run_tokenize(options: Namespace) -> int:
    """Tokenizes; returns the exit code."""
    job = Job(
        sources=options.sources,
        tokenizer=options.tokenizer,
        out=options.out,
        column=options.column,
        end_token=options.end_token,
        suffixes=options.suffixes,
        shard_tokens=options.shard_tokens,
    )
    return fill(
        job.out, "tokenizing", lambda display: describe(tokenize(job, options.workers, display.tokens))
    )


def run_pack(options: Namespace) -> int:
    """Packs; returns the exit code."""
    folder, out, size = options.folder, options.out, options.shard_mib
    return fill(out, "packing", lambda display: describe_pack(pack(folder, out, size, display.files)))


def fill(out: Path, title: str, make: Callable[[Display], str]) -> int:
    """Fills a folder under a progress bar, and prints what ``make`` says of it; returns the exit code."""
    try:
        with closing(Display(title)) as display:
            made = make(display)
    except KeyboardInterrupt:
        print(f"interrupted: the same command goes on where {out} ends", file=sys.stderr)
        return INTERRUPTED
    print(f"{out}: {made}")
    return FINISHED


def describe_pack(manifest: PackManifest) -> str:
    """What is in a pack, in a line."""
    shards, size = sum(map(len, manifest.shards.values())), memory(sum(manifest.sizes.values()) / 2**20)
    counts = " and ".join(f"{counted(n, 'picture')} in {split}" for split, n in manifest.samples.items())
    return f"{counts}, {len(manifest.classes):,} classes, {counted(shards, 'tar file')}, {size}"


def describe(manifest: Manifest) -> str:
    """What is in a folder of shards, in a line."""
    size = memory(manifest.tokens * int(manifest.dtype[-1]) / 2**20)
    return (
        f"{manifest.tokens:,} tokens of {counted(manifest.documents, 'document')} in "
        f"{counted(len(manifest.checksums), 'shard')}, {size}, tokenizer {manifest.tokenizer}"
    )


def run_verify(options: Namespace) -> int:
    """Reads all files of shards and packs; returns the exit code.

    Raises:
        DataError: a file is not what was written.
    """
    for folder in options.folders:
        if is_pack(folder):
            print(f"{folder}: {describe_pack(verify_pack(folder))}, as written")
            continue
        manifest = TokenShards(folder).manifest
        for number, expected in enumerate(manifest.checksums):
            path = shard_path(folder, number)
            if checksum(path) != expected:
                raise DataError(f"{path} is damaged: its checksum is not that of the manifest")
        print(f"{folder}: {describe(manifest)}, as written, fingerprint {manifest.fingerprint}")
    return FINISHED


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""

    def command() -> int:
        options = parser().parse_args(arguments)
        code: int = options.run(options)
        return code

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
