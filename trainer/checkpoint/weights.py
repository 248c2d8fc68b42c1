"""Weights alone: read from a checkpoint or a safetensors file, and loaded into a model by name and shape."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.checkpoint.reading import read, read_verified
from trainer.checkpoint.storage import find_checkpoints
from trainer.errors import CheckpointError, MachineError, one_line

WEIGHTS = "checkpoint.weights="
"""The option that takes a part of another model's weights, too."""

SHOWN = 10
"""Names in a message, of one kind."""


def weights_of(checkpoint: Path, *, ema: bool = False) -> dict[str, Tensor]:
    """The weights in a checkpoint by name, or the averaged ones.

    Raises:
        CheckpointError: it is damaged, or has no averaged weights.
        MachineError: it cannot be read.
    """
    model = read_verified(checkpoint, part="model")["model"]
    weights = {name: value for name, value in model.items() if isinstance(value, Tensor)}
    if not ema:
        return weights
    content = read(checkpoint, part="ema")
    if "ema" not in content:
        raise CheckpointError(f"{checkpoint} has no averaged weights: the run had loop.ema=null")
    return averaged(weights, content["ema"]["average"])


def averaged(weights: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state with the averages in place of the weights; what is not averaged, as buffers of integers, stays.

    Args:
        weights: the state, in which a tied weight stands under each of its names.
        average: in which it stands under one of them, beside buffers that the state may leave out.
    """

    def name_of(name: str, weight: Tensor) -> str | None:
        if name in average:
            return name
        twins = (other for other in average if other in weights and weights[other].dtype == weight.dtype)
        return next((other for other in twins if torch.equal(weights[other], weight)), None)

    names = {name: name_of(name, weight) for name, weight in weights.items()}
    return {name: weights[name] if found is None else average[found] for name, found in names.items()}


def load_weights(option: str, path: str, model: nn.Module, *, strict: bool) -> list[str]:
    """Gives a model the weights of a run, a checkpoint or a safetensors file, whatever else it was trained with.

    Args:
        option: that the user gave the path to, for messages.
        path: of the run, the checkpoint or the file.
        model: on its device, and sharded as it will be trained.
        strict: refuse weights that do not match by name and shape, instead of taking those that do.

    Returns:
        Of each kind of mismatch, a warning that names all.

    Raises:
        CheckpointError: there are no weights, or they do not match.
        MachineError: they cannot be read.
    """
    theirs = read_weights(option, path)
    ours = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    found = mismatches(ours, theirs)
    matching = [name for name in ours if name in theirs and ours[name].shape == theirs[name].shape]
    if found and (strict or not matching):
        kinds = "; ".join(_listed(kind, names[:SHOWN], len(names)) for kind, names in found.items())
        way = ": checkpoint.weights_strict=false takes what matches" if matching and option == WEIGHTS else ""
        raise CheckpointError(f"{option}{path} does not match the model: {kinds}{way}")
    with torch.no_grad():
        for name in matching:
            value = theirs[name].to(ours[name].device, ours[name].dtype)
            if isinstance(mine := ours[name], DTensor):
                value = distribute_tensor(value, mine.device_mesh, mine.placements, src_data_rank=None)
            ours[name].copy_(value)
    return [f"{option}{path}: {_listed(kind, names, len(names))}" for kind, names in found.items()]


def read_weights(option: str, path: str) -> dict[str, Tensor]:
    """The weights in a safetensors file, or in the newest checkpoint of a run.

    Raises:
        CheckpointError: there are none, or they are damaged.
        MachineError: they cannot be read.
    """
    file = Path(path)
    if not file.is_file():
        return weights_of(find_checkpoints(file, option)[0])
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{option}{path} is no safetensors file: {one_line(error)}") from None
    except OSError as error:
        raise MachineError(f"{option}{path} cannot be read: {error.strerror or one_line(error)}") from None


def mismatches(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """What does not match, by its kind."""
    found = {
        "missing there": [name for name in ours if name not in theirs],
        "unknown to the model": [name for name in theirs if name not in ours],
        "of another shape": [
            f"{name} {tuple(theirs[name].shape)} there, {tuple(mine.shape)} here"
            for name, mine in ours.items()
            if name in theirs and theirs[name].shape != mine.shape
        ],
    }
    return {kind: names for kind, names in found.items() if names}


def _listed(kind: str, names: list[str], total: int) -> str:
    more = f" and {total - len(names)} more" if total > len(names) else ""
    return f"{kind}: {', '.join(names)}{more}"
