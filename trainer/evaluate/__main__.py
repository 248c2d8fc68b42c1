"""``python -m trainer.evaluate RUN``: the metrics of a checkpoint, and what it predicts."""

import sys
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from trainer.cli.common import Parser, exit_code, folding_table, need_package, table_console
from trainer.cli.stored_run import add_run_arguments, build_again, find_checkpoint, load, run_of
from trainer.errors import ConfigError, nearest
from trainer.evaluate.files import (
    FORMATS,
    check_target,
    draw_confusion,
    write_predictions,
)
from trainer.evaluate.predictions import Predictions, predict_split
from trainer.formatting import percent
from trainer.metrics import metric_of
from trainer.rundir.status import FINISHED
from trainer.rundir.strict_json import dumps
from trainer.training.evaluation import evaluate_with_average
from trainer.training.parts import RunParts


def parser() -> Parser:
    """The command line's options."""
    parser = Parser(
        prog="python -m trainer.evaluate",
        description="Evaluates a checkpoint as training does. Of a classifier it also shows precision and recall "
        "of each class.",
    )
    add_run_arguments(parser, ema="predict with the averaged weights; the metrics are of both")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="data.KEY=VALUE",
        help="another value of an option of the data, or data=NAME",
    )
    parser.add_argument(
        "--split", metavar="NAME", help="whose classes and predictions are shown (default: the first)"
    )
    parser.add_argument("--confusion", type=Path, metavar="FILE.png", help="draw the confusion matrix")
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE", help="write a row for each sample, as .csv or .parquet"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    return exit_code(lambda: run(parser().parse_intermixed_args(argv)))


def run(args: Namespace) -> int:
    """Evaluates, writes the files and prints; returns the exit code.

    Raises:
        UserError: there is no such run, checkpoint or split, or it does not fit what is asked for.
    """
    check_files(args)
    checkpoint = find_checkpoint(args.path, best=args.best, step=args.step)
    parts = build_again(run_of(checkpoint, args.path), args.plugins, args.overrides)
    split = args.split or next(iter(parts.data.evals))
    if split not in parts.data.evals:
        raise ConfigError(f"--split {split} does not exist{nearest(split, parts.data.evals)}")
    load(parts, checkpoint)
    if args.ema and parts.state.ema is None:
        raise ConfigError(f"--ema: {args.path} has no averaged weights: the run had loop.ema=null")
    metrics = evaluate_with_average(parts)
    found = predictions(parts, split, args)
    if found and args.predictions:
        write_predictions(found, args.predictions)
    if found and args.confusion:
        draw_confusion(found, args.confusion)
    place = {"checkpoint": str(checkpoint), "step": parts.counters.step}
    if args.json:
        classes = {"split": split, "classes": found.per_class()} if found else {}
        print(dumps({**place, "metrics": metrics, **classes}, indent=2))
    else:
        show(place, metrics, found, table_console())
    return FINISHED


def check_files(args: Namespace) -> None:
    """Refuses files that could not be written at the end.

    Raises:
        UserError: a folder or a package is missing, or the name ends in nothing that is known.
    """
    if args.predictions:
        check_target("--predictions", args.predictions, FORMATS)
        if args.predictions.suffix == ".parquet":
            need_package("--predictions FILE.parquet", "pyarrow", "text")
    if args.confusion:
        check_target("--confusion", args.confusion, (".png",))
        need_package("--confusion", "matplotlib", "report")


def predictions(parts: RunParts, split: str, args: Namespace) -> Predictions | None:
    """The predictions for a split, of the weights asked for; None if the model is no classifier.

    Raises:
        ConfigError: it is none, but a file of them is asked for.
    """
    average = parts.state.ema
    with average.applied() if args.ema and average is not None else nullcontext():
        found = predict_split(parts, split)
    if found is None and (
        option := "--predictions" * bool(args.predictions) or "--confusion" * bool(args.confusion)
    ):
        raise ConfigError(f"{option} needs a classifier: model={parts.config.model['name']} is none")
    return found


def show(
    place: dict[str, Any], metrics: dict[str, float], found: Predictions | None, console: Console
) -> None:
    """Prints the metrics, and a table of the classes where there are any."""
    console.print(
        f"{place['checkpoint']}, step {place['step']}", markup=False, highlight=False, soft_wrap=True
    )
    table = folding_table("metric", "value")
    for name, value in metrics.items():
        table.add_row(escape(name), metric_of(name).text(value))
    console.print(table)
    if found is None:
        return
    table = folding_table("class", "precision", "recall", "count", title=found.split)
    for row in found.per_class():
        shares = ("-" if row[key] is None else percent(row[key]) for key in ("precision", "recall"))
        table.add_row(escape(row["class"]), *shares, str(row["count"]))
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
