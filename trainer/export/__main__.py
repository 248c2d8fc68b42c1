"""``python -m trainer.export RUN``: the model of a checkpoint in a form that other programs read."""

import sys
from argparse import Namespace
from pathlib import Path

from trainer.cli.common import Parser, exit_code, need_package
from trainer.cli.stored_run import add_override_argument, add_run_arguments, find_checkpoint, open_model
from trainer.errors import ConfigError
from trainer.export.hugging_face import write_hugging_face
from trainer.export.plain import write_plain
from trainer.rundir.status import FINISHED

NAMES = {"safetensors": "model.safetensors", "torch-export": "model.pt2", "onnx": "model.onnx", "hf": "hf"}
"""What is written in the run directory if no ``--out`` is given, by format; of hf it is a folder."""


def parser() -> Parser:
    """The parser of the command's arguments."""
    parser = Parser(
        prog="python -m trainer.export",
        description="Writes the model of a checkpoint, of however many ranks. safetensors: the weights alone, for "
        "model.load_state_dict(safetensors.torch.load_file(FILE)). torch-export and onnx: a program, whose outputs are "
        "compared with the model's. hf: a folder for transformers.",
    )
    add_run_arguments(parser, ema="the averaged weights instead of the raw ones")
    parser.add_argument(
        "--to",
        choices=NAMES,
        default="safetensors",
        metavar="FORMAT",
        help=f"{', '.join(NAMES)} (%(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: model.* or hf in the run directory"
    )
    add_override_argument(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    return exit_code(lambda: run(parser().parse_args(argv)))


def run(args: Namespace) -> int:
    """Writes the file and prints its path; returns the exit code.

    Raises:
        UserError: there is no such checkpoint, the model does not fit the format, or the file cannot be written.
    """
    checkpoint = find_checkpoint(args.path, best=args.best, step=args.step)
    out = args.out or checkpoint.parent.parent / NAMES[args.to]
    check_out(out, folder=args.to == "hf")
    if args.to == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            need_package("--to onnx", package, "export")
    if args.to == "safetensors":
        write_plain(checkpoint, out, ema=args.ema)
    elif args.to == "hf":
        write_hugging_face(open_model(args, device="cpu"), out)
    else:
        from trainer.export.traced import write_onnx, write_torch_export  # torch.export takes long to import

        write = write_onnx if args.to == "onnx" else write_torch_export
        difference = write(open_model(args, device="cpu"), out)
        print(f"largest difference from the model's outputs: {difference:.1e}", file=sys.stderr)
    print(out)
    return FINISHED


def check_out(out: Path, *, folder: bool) -> None:
    """Refuses a place that cannot be written to, before anything is computed.

    Raises:
        ConfigError: it is a folder instead of a file, a file instead of a folder, or in a folder that does not exist.
    """
    give = f"give the name of a {'folder' if folder else 'file'}"
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: the folder {out.parent} does not exist: {give}")
    if out.exists() and out.is_dir() != folder:
        raise ConfigError(f"--out {out}: is a {'file' if folder else 'folder'}: {give}")


if __name__ == "__main__":
    sys.exit(main())
