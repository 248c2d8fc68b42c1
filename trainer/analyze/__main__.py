"""``python -m trainer.analyze RUN``: curvature, preconditioner and loss landscape of a run's checkpoint.

Several runs are shown together by the analyses in `COMPARISONS`.
"""

import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from torch.utils.tensorboard import SummaryWriter

from trainer.analyze import factors, gershgorin, landscape, preconditioner, spectrum, trajectories
from trainer.analyze.loaded_run import DoesNotFit, Finding, LoadedRun, Settings
from trainer.cli.common import Parser, count, exit_code, folding_table, nonnegative, table_console
from trainer.errors import ConfigError, MissingExtra, nearest
from trainer.formatting import number
from trainer.rundir.status import FINISHED
from trainer.rundir.strict_json import dumps

ANALYSES: dict[str, Callable[[LoadedRun, Settings], Finding]] = {
    "factors": factors.analyse,
    "gershgorin": gershgorin.analyse,
    "spectrum": spectrum.analyse,
    "landscape": landscape.analyse,
}
"""Of one run."""
COMPARISONS: dict[str, Callable[[Sequence[LoadedRun], Settings], Finding]] = {
    "preconditioner": preconditioner.analyse,
    "trajectories": trajectories.analyse,
}
"""Of one run or several."""
DEFAULT = [*ANALYSES, "preconditioner"]
"""Of one run; its trajectory is in its landscape, too."""


def parser() -> Parser:
    """The command line's options."""
    parser = Parser(
        prog="python -m trainer.analyze",
        description="Analyses the network of a run: full Kronecker factors, Gershgorin discs, spectrum, loss "
        "landscape, preconditioner, trajectory; the last two of several runs, too. Writes PNG files and TensorBoard "
        "images.",
    )
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="a run directory (its newest checkpoint), or a checkpoint of one; several of one model to compare them",
    )
    parser.add_argument(
        "--what",
        type=lambda text: text.split(","),
        metavar="NAME[,NAME]",
        help=f"of {', '.join([*ANALYSES, *COMPARISONS])}, the last {len(COMPARISONS)} of one run or several (default: "
        "all that fit)",
    )
    default = Settings()
    parser.add_argument(
        "--layers",
        metavar="GLOB",
        help="Linear, Conv2d and norm layers, '*' for all (default: the first, a middle and the last Linear or Conv2d)",
    )
    parser.add_argument(
        "--steps",
        type=steps,
        metavar="N[,N]",
        help="of the checkpoints that factors, gershgorin and spectrum are of, or 'all' (default: that of RUN)",
    )
    parser.add_argument(
        "--batches",
        type=partial(count, least=2),
        default=default.batches,
        help="training batches to average over (%(default)s)",
    )
    parser.add_argument(
        "--points",
        type=partial(count, least=2),
        default=default.points,
        help="points a side of a landscape (%(default)s)",
    )
    parser.add_argument(
        "--axes",
        metavar="NAME:PLACE,NAME:PLACE",
        help="two weights as the axes of trajectories, such as 1.weight:0,1.weight:1, or a parameter that has two "
        "(default: the principal directions of all checkpoints)",
    )
    parser.add_argument(
        "--sigma", type=nonnegative, default=default.sigma, help="of the noise off the diagonal (%(default)s)"
    )
    parser.add_argument(
        "--plugins",
        type=lambda text: text.split(","),
        metavar="MODULE[,MODULE]",
        help="the plugins that the run's config names: they are executed, so name only those that you trust",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to write (default: analysis/ in the first RUN)"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON instead of tables")
    return parser


def steps(text: str) -> tuple[int, ...] | Literal["all"]:
    """The steps in a text, ``all`` or numbers with commas between them.

    Raises:
        ArgumentTypeError: they are neither.
    """
    if text == "all":
        return "all"
    if not all(part.isascii() and part.isdigit() for part in text.split(",")):
        raise ArgumentTypeError(f"{text!r} is neither 'all' nor steps such as 100,200")
    return tuple(int(part) for part in text.split(","))


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    return exit_code(lambda: run(parser().parse_args(argv)))


def run(args: Namespace) -> int:
    """Analyses a run, writes the figures and prints the numbers; returns the exit code.

    Raises:
        UserError: a path is no run, an analysis is unknown or does not fit the runs, or matplotlib is missing.
    """
    known = {**ANALYSES, **COMPARISONS}
    for name in args.what or ():
        if name not in known:
            raise ConfigError(f"unknown --what {name!r}{nearest(name, known)}")
        if len(args.paths) > 1 and name not in COMPARISONS:
            raise ConfigError(f"--what {name} is of one run: {len(args.paths)} are given")
    if find_spec("matplotlib") is None:
        raise MissingExtra("trainer.analyze", "matplotlib", "report")
    runs = [LoadedRun(path, args.plugins) for path in args.paths]
    run = runs[0]
    step = run.parts.counters.step
    found = analyse(runs, args)
    written = write(found, args.out or run.run / "analysis", run.checkpoint.name, step)
    if args.json:
        rows = {name: finding.rows for name, finding in found.items()}
        place = {
            "checkpoint": str(run.checkpoint),
            "step": step,
            "figures": [str(path) for path in written],
        }
        print(dumps({**place, **rows}, indent=2))
    else:
        show(found, written, table_console())
    return FINISHED


def analyse(runs: Sequence[LoadedRun], args: Namespace) -> dict[str, Finding]:
    """The finding of each analysis, by its name.

    One that does not fit the runs is skipped with a note, or an error if it was asked for.
    """
    settings = Settings(args.layers, args.steps, args.batches, args.points, args.sigma, args.axes)
    found = {}
    for name in dict.fromkeys(args.what or (DEFAULT if len(runs) == 1 else COMPARISONS)):
        for run in runs:
            run.load(run.checkpoint)
        try:
            found[name] = (
                ANALYSES[name](runs[0], settings) if name in ANALYSES else COMPARISONS[name](runs, settings)
            )
        except DoesNotFit as error:
            if args.what:
                raise
            print(f"skipped {name}: {error}", file=sys.stderr)
    return found


def write(found: dict[str, Finding], folder: Path, checkpoint: str, step: int) -> list[Path]:
    """Draws the findings as PNG files, and as images in TensorBoard event files in the same folder; returns the PNGs.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    from trainer.analyze.figures import FIGURES  # takes a second, and is not always installed

    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with SummaryWriter(str(folder)) as board:
            for name, finding in found.items():
                written.append(folder / f"{name}_{checkpoint}.png")
                FIGURES[name](finding.shown).savefig(written[-1], dpi=110)
                with Image.open(written[-1]) as picture:
                    board.add_image(f"analysis/{name}", np.asarray(picture), step, dataformats="HWC")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written to: {error.strerror}; give another --out") from None
    return written


def show(found: dict[str, Finding], written: list[Path], console: Console) -> None:
    """Prints the numbers as tables, without lists, and the paths of the figures."""
    for name, finding in found.items():
        lists = {head for row in finding.rows for head, value in row.items() if isinstance(value, list)}
        heads = [head for head in finding.rows[0] if head not in lists]
        table = folding_table(*(head.replace("_", " ") for head in heads), title=name)
        for row in finding.rows:
            table.add_row(*(escape(cell(row[head])) for head in heads))
        console.print(table)
    for path in written:
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def cell(value: Any) -> str:
    """A cell of a table; ``-`` for None."""
    if isinstance(value, float):
        return number(value)
    return "-" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
