"""The weights of a checkpoint as one safetensors file: nothing of the run is needed but the checkpoint."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from trainer.checkpoint.weights import weights_of
from trainer.errors import UserError, one_line
from trainer.rundir.files import atomic_path


def write_plain(checkpoint: Path, out: Path, *, ema: bool) -> None:
    """Writes the weights, or the averaged ones, as one safetensors file.

    Raises:
        CheckpointError: the checkpoint cannot be read, or has no averaged weights.
        UserError: the file cannot be written.
    """
    # a tied weight is in the file under each of its names, so that a strict load finds it
    write_tensors({name: tensor.clone() for name, tensor in weights_of(checkpoint, ema=ema).items()}, out)


def write_tensors(tensors: dict[str, Tensor], out: Path) -> None:
    """Writes tensors that share no memory as a safetensors file, which is replaced at once.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with atomic_path(out) as part:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, {"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out} cannot be written: {one_line(error)}: choose another --out") from None
