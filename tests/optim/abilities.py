"""Tries what each optimizer can do (tests/optim/trials.py), and writes the table in docs/abilities.md.

    python tests/optim/abilities.py [--write] [--optimizers adafisher muon] [--columns DDP FSDP2]

It takes about three minutes. Without ``--write`` it prints the table.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script

import torch

from tests.distributed.ranks import on_ranks
from tests.optim.trials import ON_RANKS, OPTIMIZERS, TRIALS, attempt, case_of
from trainer.distributed.ranks import Ranks

PAGE = Path(__file__).parents[2] / "docs/abilities.md"
BEGIN, END = "<!-- written by tests/optim/abilities.py -->", "<!-- end -->"
CHUNK = 5
"""Optimizers that are tried by the same two ranks."""

Cells = dict[tuple[str, str], str]
"""What came of each trial, by optimizer and column."""


def tried(optimizers: Iterable[str], columns: Iterable[str]) -> Cells:
    """What comes of trials in this process."""
    cases = {name: case_of(name) for name in optimizers}
    return {(name, column): attempt(case, column) for name, case in cases.items() for column in columns}


def tried_on_ranks(optimizers: Sequence[str], columns: Sequence[str]) -> Cells:
    """What comes of trials on two ranks: each optimizer's alone, where ranks that were to try several ended."""
    try:
        one, other = on_ranks(2, as_rank, optimizers, columns)
    except AssertionError as error:
        if len(optimizers) == 1:
            return {(optimizers[0], column): f"no: {error}" for column in columns}
        return {key: cell for name in optimizers for key, cell in tried_on_ranks([name], columns).items()}
    return {key: cell if cell == other[key] else f"no: {cell}, {other[key]}" for key, cell in one.items()}


def as_rank(ranks: Ranks, optimizers: Sequence[str], columns: Sequence[str]) -> Cells:
    """What comes of trials on this rank."""
    cases = {name: case_of(name) for name in optimizers}
    for case in cases.values():
        _ = case.plain  # before there is a process group
    return {
        (name, column): attempt(case, column, ranks) for name, case in cases.items() for column in columns
    }


def table_of(cells: Cells) -> str:
    """The table as Markdown, with the reasons below it."""
    optimizers = dict.fromkeys(name for name, _ in cells)
    columns = dict.fromkeys(column for _, column in cells)
    reasons = list(dict.fromkeys(reason for cell in cells.values() if (reason := cell.partition(": ")[2])))

    def shown(cell: str) -> str:
        word, _, reason = cell.partition(": ")
        return f"{word} ({reasons.index(reason) + 1})" if reason else word

    lines = [f"| `optimizer=` | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name in optimizers:
        lines.append(f"| `{name}` | {' | '.join(shown(cells[name, column]) for column in columns)} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))])


def documented() -> Cells:
    """The cells of the table in the docs."""
    rows = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    head, _, *lines = re.findall(r"^\| (.*) \|$|^\|--.*$", rows, re.MULTILINE)
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", rows, re.MULTILINE))
    cells = {}
    for line in lines:
        name, *row = line.split(" | ")
        for column, cell in zip(head.split(" | ")[1:], row, strict=True):
            cells[name.strip("`"), column] = re.sub(
                r" \((\d+)\)", lambda number: f": {reasons[number[1]]}", cell
            )
    return cells


def write(table: str) -> None:
    """Puts a table into the docs, in the place of the one that is there."""
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="a whole table into the docs")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=[*OPTIMIZERS])
    parser.add_argument("--columns", nargs="+", choices=TRIALS, default=[*TRIALS])
    args = parser.parse_args()
    if args.write and (args.optimizers, args.columns) != ([*OPTIMIZERS], [*TRIALS]):
        parser.error("--write needs all optimizers and columns")
    torch.set_num_threads(1)
    alone = [column for column in args.columns if column not in ON_RANKS]
    spread = [column for column in args.columns if column in ON_RANKS]
    cells: Cells = {}
    for first in range(0, len(args.optimizers), CHUNK):
        chunk = args.optimizers[first : first + CHUNK]
        found = tried(chunk, alone) | (tried_on_ranks(chunk, spread) if spread else {})
        cells |= {(name, column): found[name, column] for name in chunk for column in args.columns}
        print(
            f"{len(cells)} of {len(args.optimizers) * len(args.columns)} cells", file=sys.stderr, flush=True
        )
    table = table_of(cells)
    print(table)
    if args.write:
        write(table)


if __name__ == "__main__":
    main()
