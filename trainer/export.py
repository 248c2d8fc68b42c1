"""``python -m trainer.export RUN``: the weights of a checkpoint as one plain file, for use elsewhere."""

import sys
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from trainer.checkpoint import storage
from trainer.checkpoint.weights import weights_of
from trainer.cli.common import Parser, exit_code
from trainer.errors import CheckpointError, UserError, one_line
from trainer.rundir.files import atomic_path
from trainer.rundir.status import FINISHED


def parser() -> Parser:
    """The parser of the command's arguments."""
    parser = Parser(
        prog="python -m trainer.export",
        description="Writes the weights of a checkpoint, of however many ranks, as one safetensors file. "
        "In PyTorch: model.load_state_dict(safetensors.torch.load_file(FILE)).",
    )
    parser.add_argument("path", type=Path, metavar="RUN", help="a run directory, or one of its checkpoints")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/model.safetensors")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--best", action="store_true", help="the run's best checkpoint instead of the newest")
    parser.add_argument("--ema", action="store_true", help="the averaged weights instead of the raw ones")
    return parser


def export(path: Path, out: Path | None, *, best: bool, ema: bool) -> Path:
    """Writes the weights of a checkpoint as one safetensors file, which is replaced at once.

    Args:
        path: a run directory, or one of its checkpoints.
        out: the file; None: ``model.safetensors`` in the run directory.
        best: take the run's best checkpoint instead of its newest.
        ema: take the averaged weights.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be read.
    """
    if best and (name := storage.best(path / "checkpoints")):
        path = path / "checkpoints" / name
    elif best:
        raise CheckpointError(f"{path} has no best checkpoint: leave out --best")
    source = storage.find_checkpoints(path)[0]
    out = out or (source.parent.parent / "model.safetensors")
    if out.is_dir() or not out.parent.is_dir():
        what = "is a folder" if out.is_dir() else f"the folder {out.parent} does not exist"
        raise UserError(f"--out {out}: {what}: give the name of a file")
    weights = weights_of(source, ema=ema)
    try:
        with atomic_path(out) as part:
            # a tied weight is in the file under each of its names, so that a strict load finds it
            save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, part)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out} cannot be written: {one_line(error)}: choose another --out") from None
    return out


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""

    def command() -> int:
        options = parser().parse_args(arguments)
        print(export(options.path, options.out, best=options.best, ema=options.ema))
        return FINISHED

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
