"""``python -m trainer.report diff A B``: what two runs differ in, and where their metrics part."""

import math
from argparse import Namespace
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from trainer.cli.common import Parser, folding_table, table_console
from trainer.errors import DataError
from trainer.formatting import printable
from trainer.report.grouping import NEVER_SWEPT, config_text
from trainer.report.read_runs import read_config
from trainer.report.records import Record, read_records
from trainer.rundir.files import METRICS
from trainer.rundir.foreign import parse_json, read_text
from trainer.rundir.status import FINISHED
from trainer.rundir.strict_json import dumps

FACTS = (
    "git_commit",
    "git_diff",
    "python",
    "torch",
    "torchvision",
    "cuda",
    "devices",
    "host",
    "cpus",
    "threads",
)
"""Entries of environment.json that are compared."""
SHORT = 60
"""Characters of a value that are shown."""


@dataclass(frozen=True)
class Parting:
    """The first record of metrics.jsonl in which two runs differ."""

    step: int
    kind: str
    metrics: dict[str, tuple[float | None, float | None]]
    """Those that differ, of A and of B; None where a run does not have the metric. Empty: a run has no such record."""


@dataclass(frozen=True)
class RunDifference:
    """What two runs differ in: options and facts by name, each with its value in A and in B."""

    options: dict[str, tuple[Any, Any]]
    environment: dict[str, tuple[Any, Any]]
    parting: Parting | None
    """None: the records are the same."""
    records: int
    """How many of them are the same, before they part."""


def parser() -> Parser:
    """The command line's options."""
    parser = Parser(
        prog="python -m trainer.report diff",
        description="Compares two runs: options, commit and versions that differ, and the step at which metrics part.",
    )
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def run(args: Namespace) -> int:
    """Compares and prints; returns the exit code.

    Raises:
        DataError: a path is no run.
    """
    found = compare_runs(*args.runs)
    if args.json:
        print(dumps(asdict(found), indent=2))
    else:
        show(found, table_console())
    return FINISHED


def compare_runs(a: Path, b: Path) -> RunDifference:
    """What two run directories differ in.

    Raises:
        DataError: one of them is none.
    """
    configs = [config_of(path) for path in (a, b)]
    records = [read_records(path / METRICS)[0] for path in (a, b)]
    parting, same = part(*records)
    environments = [environment_of(path) for path in (a, b)]
    return RunDifference(
        options={
            key: values
            for key, values in differing(*configs).items()
            if key not in NEVER_SWEPT and not key.startswith("hydra.")
        },
        environment={key: values for key, values in differing(*environments).items() if key in FACTS},
        parting=parting,
        records=same,
    )


def config_of(path: Path) -> dict[str, Any]:
    """The options of a run by their dotted names.

    Raises:
        DataError: it is no run directory.
    """
    config = read_config(path)
    if config is None:
        what = "has no config.yaml that can be read" if path.is_dir() else "is not a directory"
        raise DataError(f"{path} {what}: give two run directories")
    return config


def environment_of(path: Path) -> dict[str, Any]:
    """The content of a run's environment.json; empty if it cannot be read."""
    try:
        found = parse_json(read_text(path / "environment.json"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def differing(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The entries whose values are not the same; None where there is none."""
    keys = dict.fromkeys([*a, *b])
    return {key: (a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key)}


def part(a: list[Record], b: list[Record]) -> tuple[Parting | None, int]:
    """The first records that differ, and how many are the same before."""
    for number, (first, second) in enumerate(zip_longest(a, b)):
        if first is None or second is None or first[:2] != second[:2]:
            found = min((each for each in (first, second) if each), key=lambda record: record.step)
            return Parting(found.step, found.kind, {}), number
        unequal = {
            name: values
            for name, values in differing(first.values, second.values).items()
            if not all(isinstance(value, float) and math.isnan(value) for value in values)
        }
        if unequal:
            return Parting(first.step, first.kind, unequal), number
    return None, len(a)


def show(found: RunDifference, console: Console) -> None:
    """Prints the differences as tables, and where the metrics part in a sentence."""
    for title, values in (("options", found.options), ("environment", found.environment)):
        if values:
            print_table(title, values, console)
        else:
            console.print(f"No {title} differ." if title == "options" else "The environments are the same.")
    if (parting := found.parting) is None:
        console.print(f"The metrics are the same in all {found.records} records.")
    elif parting.metrics:
        print_table(f"metrics part at step {parting.step} ({parting.kind})", parting.metrics, console)
    else:
        console.print(
            f"{found.records} records are the same; one run alone has {parting.kind} at step {parting.step}."
        )


def print_table(title: str, values: dict[str, tuple[Any, Any]], console: Console) -> None:
    """Prints names with their values in A and B; long ones are cut off."""
    console.print(Text(title, "italic"))
    table = folding_table("", "A", "B")
    for name, pair in values.items():
        table.add_row(*(Text(printable(cell)) for cell in (name, *map(short, pair))))
    console.print(table)


def short(value: Any) -> str:
    """A value as it is written in a config, cut off after `SHORT` characters."""
    text = config_text(value)
    return text if len(text) <= SHORT else f"{text[:SHORT]}…"
