"""``python -m trainer.data``: prepares data sets for training."""

import os
import sys
import time
from argparse import Namespace
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trainer.cli.common import Parser, exit_code
from trainer.data.documents import TABLES, TEXT
from trainer.data.shards import Manifest, TokenShards, checksum, shard_path
from trainer.data.tokenize import SHARD_TOKENS, Job, tokenize
from trainer.errors import ConfigError, DataError
from trainer.formatting import memory
from trainer.rundir.status import FINISHED, INTERRUPTED


def parser() -> Parser:
    """The parser of the command's arguments."""
    parser = Parser(prog="python -m trainer.data", description="Prepares data sets for training.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

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
        type=positive,
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
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
        type=positive,
        default=SHARD_TOKENS,
        metavar="N",
        help="of a shard (default: %(default)s)",
    )

    command = commands.add_parser("verify", help="check folders of token shards against their checksums")
    command.set_defaults(run=run_verify)
    command.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="as written by tokenize")
    return parser


def positive(text: str) -> int:
    """The whole number in a text, at least 1.

    Raises:
        ConfigError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{text} is wrong: it must be a whole number >= 1")
    return int(text)


class Display:
    """A progress bar on standard error, if that is a terminal, from the first report on."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = [
            TextColumn("tokenizing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        ]
        self.bar = Progress(
            *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self.task = self.bar.add_task("", rate="", start=False)
        self.first: tuple[float, int] | None = None

    def __call__(self, total: int, done: int, tokens: int) -> None:
        """Shows how many sources are done, of how many, and the tokens of them."""
        if self.first is None:  # not before, as its thread would be there when the workers are forked
            self.first = (time.monotonic(), tokens)
            self.bar.start()
            self.bar.start_task(self.task)
        seconds = max(time.monotonic() - self.first[0], 1e-3)
        rate = f"sources, {tokens / 1e6:,.1f} M tokens, {(tokens - self.first[1]) / seconds / 1e6:.2f} M/s"
        self.bar.update(self.task, total=total, completed=done, rate=rate)

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
    try:
        with closing(Display()) as display:
            manifest = tokenize(job, options.workers, display)
    except KeyboardInterrupt:
        print(f"interrupted: the same command goes on where {job.out} ends", file=sys.stderr)
        return INTERRUPTED
    print(f"{job.out}: {describe(manifest)}")
    return FINISHED


def describe(manifest: Manifest) -> str:
    """What is in a folder of shards, in a line."""
    size = memory(manifest.tokens * int(manifest.dtype[-1]) / 2**20)
    return (
        f"{manifest.tokens:,} tokens of {manifest.documents:,} documents in {len(manifest.checksums)} shards, "
        f"{size}, tokenizer {manifest.tokenizer}"
    )


def run_verify(options: Namespace) -> int:
    """Reads all shards; returns the exit code.

    Raises:
        DataError: a shard is not what was written.
    """
    for folder in options.folders:
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
