"""``python -m trainer.report DIR…``: compares the runs in directories.

``… diff A B``: two runs with each other; ``… push RUN… --to TRACKER``: adds runs to an experiment tracker.
"""

import math
import sys
from argparse import ArgumentTypeError, Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from trainer.cli.common import Parser, exit_code, table_console
from trainer.errors import MissingExtra
from trainer.report import diff, push
from trainer.report.output import write
from trainer.report.read_runs import read_runs
from trainer.report.render import show
from trainer.report.serialize import as_json
from trainer.report.summary import LEVEL, Spread, make_report
from trainer.rundir.status import FINISHED
from trainer.rundir.strict_json import dumps


def parser() -> Parser:
    """The command line's options."""
    parser = Parser(
        prog="python -m trainer.report",
        description="Compares runs, finished or not. `python -m trainer.report diff A B` says what two runs differ in, "
        "`python -m trainer.report push RUN… --to TRACKER` adds runs to an experiment tracker.",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="run directories, or folders of them"
    )
    parser.add_argument(
        "--by",
        metavar="KEY[,KEY]",
        help="options to group by, such as optimizer,data.batch_size (default: all that differ but the seed)",
    )
    parser.add_argument(
        "--metric", help="to compare by, such as test/loss (default: the one that picks the best checkpoint)"
    )
    parser.add_argument(
        "--baseline",
        metavar="GROUP",
        help="compare all others with this group, by its label or a value such as adamw (default: with the best one; "
        "as the data chose it, corrected for all pairs)",
    )
    parser.add_argument(
        "--target", type=value, help="value of the metric, such as 0.95 or 95%%: when did the runs reach it?"
    )
    parser.add_argument(
        "--level",
        type=confidence,
        default=1 - LEVEL,
        metavar="CONFIDENCE",
        help="of the intervals of differences, and so of what is claimed (default: %(default)s: p < 0.005)",
    )
    parser.add_argument(
        "--spread",
        choices=get_args(Spread),
        default="interval",
        help="beside a mean: half of its 95%% interval, or the standard deviation over seeds (%(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write report.md, report.csv and plots there"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def value(text: str) -> float:
    """The number in ``0.95`` or ``95%``.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        found = float(text.removesuffix("%"))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ArgumentTypeError(f"{text!r} is neither a number nor a share such as 95%")
    return found / 100 if text.endswith("%") else found


def confidence(text: str) -> float:
    """The share in ``0.99`` or ``99%``.

    Raises:
        ArgumentTypeError: it is none between 0.5 and 1.
    """
    found = value(text)
    if not 0.5 <= found < 1:
        raise ArgumentTypeError(f"{text!r} is not between 0.5 and 1")
    return found


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["diff"]:
        return exit_code(lambda: diff.run(diff.parser().parse_args(argv[1:])))
    if argv[:1] == ["push"]:
        return exit_code(lambda: push.run(push.parser().parse_args(argv[1:])))
    return exit_code(lambda: run(parser().parse_args(argv)))


def run(args: Namespace) -> int:
    """Reads, compares, writes and prints; returns the exit code.

    Raises:
        UserError: the folders contain nothing to compare, or an option is wrong.
    """
    if args.out and find_spec("matplotlib") is None:
        raise MissingExtra("--out", "matplotlib", "report")
    report = make_report(
        read_runs(args.folders),
        by=args.by,
        metric=args.metric,
        target=args.target,
        level=round(1 - args.level, 12),  # 1 - 0.995 is a little more than 0.005
        spread=args.spread,
        baseline=args.baseline,
    )
    if args.out:
        write(report, args.out)
    if args.json:
        print(dumps(as_json(report), indent=2))
    else:
        show(report, table_console())
    return FINISHED


if __name__ == "__main__":
    sys.exit(main())
