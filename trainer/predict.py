"""``python -m trainer.predict RUN PATH…``: the classes of image files, by a run's model."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.cli.common import Parser, count, exit_code, progress
from trainer.cli.stored_run import TrainedModel, add_override_argument, add_run_arguments, open_model
from trainer.data.class_folders import EXTENSIONS
from trainer.errors import ConfigError, DataError
from trainer.formatting import percent, printable
from trainer.objectives.base import wide
from trainer.rundir.status import FINISHED
from trainer.rundir.strict_json import dumps


def parser() -> Parser:
    """The command line's options."""
    parser = Parser(
        prog="python -m trainer.predict",
        description="Classifies image files as the run's data has them in evaluation: scaled, cropped, normalised. "
        "Prints path, class and probability, separated by tabs.",
    )
    add_run_arguments(parser, ema="predict with the averaged weights")
    parser.add_argument(
        "images",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="image files, or folders of them, searched deeply",
    )
    parser.add_argument(
        "--top", type=count, default=1, metavar="K", help="show the K most probable classes (%(default)s)"
    )
    add_override_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    return exit_code(lambda: run(parser().parse_intermixed_args(argv)))


def run(args: Namespace) -> int:
    """Classifies and prints; returns the exit code.

    Raises:
        UserError: there is no such run or image, an image cannot be decoded, or the model does not classify images.
    """
    files = [file for path in args.images for file in images_of(path)]
    trained = open_model(args)
    found = [
        prediction for part in batches(trained, files) for prediction in classify(trained, part, args.top)
    ]
    if args.json:
        print(dumps(found, indent=2))
        return FINISHED
    for each in found:
        for guess in each["classes"]:
            print(printable(each["path"]), guess["class"], percent(guess["probability"]), sep="\t")
    return FINISHED


def images_of(path: Path) -> list[Path]:
    """The file that a path names, or all pictures in and below a folder, in the order of their names.

    Raises:
        DataError: there is none.
    """
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path} does not exist: give image files or folders of them")
        return [path]
    found = [Path(place, name) for place, _, names in os.walk(path) for name in names]
    pictures = sorted(file for file in found if file.suffix.lower() in EXTENSIONS and file.name[0] != ".")
    if not pictures:
        raise DataError(f"{path} has no images: they end in {' '.join(EXTENSIONS)}")
    return pictures


def batches(trained: TrainedModel, files: Sequence[Path]) -> Iterator[Sequence[Path]]:
    """The files, as many at a time as the run evaluates."""
    size = trained.config.loader.eval_batch_size
    for start in progress(range(0, len(files), size), "classifying"):
        yield files[start : start + size]


def classify(trained: TrainedModel, files: Sequence[Path], top: int) -> list[dict[str, Any]]:
    """The most probable classes of each file: ``path``, and ``classes`` with ``class`` and ``probability``.

    Raises:
        ConfigError: the model does not classify, or the data has no pictures.
        DataError: a file is no picture.
    """
    config, read = trained.config, trained.data.read_images
    if trained.logits_of != "classes":
        raise ConfigError(f"trainer.predict needs a classifier: model={config.model['name']} is none")
    if read is None:
        raise ConfigError(
            f"trainer.predict needs pictures: data={config.data['name']} does not say how to read files"
        )
    with torch.inference_mode(), trained.precision.autocast():
        probabilities = wide(trained.model(read(files))).softmax(-1)
    names = trained.class_names(probabilities.shape[-1])
    values, places = probabilities.topk(min(top, len(names)))
    return [
        {
            "path": str(file),
            "classes": [
                {"class": names[place], "probability": value} for value, place in zip(*pair, strict=True)
            ],
        }
        for file, *pair in zip(files, values.tolist(), places.tolist(), strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
