"""A run that is opened for reading, by the commands that do something with a trained model; it executes nothing."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.checkpoint import storage
from trainer.checkpoint.reading import read, read_verified
from trainer.checkpoint.weights import mismatches, weights_of
from trainer.cli.common import Parser
from trainer.config.command_line import parse_overrides
from trainer.config.plugins import load_plugins, refuse_unnamed
from trainer.config.schema import Config, check_config
from trainer.data import Data
from trainer.distributed.ranks import SINGLE_PROCESS
from trainer.errors import CheckpointError, ConfigError
from trainer.models.pretrained import replaced_weights
from trainer.objectives import OBJECTIVES
from trainer.optim.protocols import HasTwoWeights
from trainer.registry import import_plugin
from trainer.rundir.files import CONFIG
from trainer.rundir.frozen_config import read_frozen
from trainer.training.build import build, load_data, pick_device
from trainer.training.build_model import build_model, initialize_lazy_layers
from trainer.training.build_objective import objective_config
from trainer.training.parts import RunParts
from trainer.training.precision import Precision

# Arguments ------------------------------------------------------------------------------------------------------------


def add_run_arguments(parser: Parser, *, ema: str) -> None:
    """Adds the arguments by which a command names a run, one of its checkpoints and its plugins.

    Args:
        parser: of the command.
        ema: what ``--ema`` does.
    """
    parser.add_argument("path", type=Path, metavar="RUN", help="a run directory, or one of its checkpoints")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--best", action="store_true", help="the run's best checkpoint instead of the newest")
    which.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step")
    parser.add_argument("--ema", action="store_true", help=ema)
    parser.add_argument(
        "--plugins",
        type=lambda text: text.split(","),
        default=[],
        metavar="MODULE[,MODULE]",
        help="the plugins that the run's config names: they are executed, so name only those that you trust",
    )


def add_override_argument(parser: Parser) -> None:
    """Adds ``--set``, for commands whose other arguments leave no room for overrides."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="data.KEY=VALUE",
        help="another value of an option of the data, such as data.root=/elsewhere; may be repeated",
    )


# Finding --------------------------------------------------------------------------------------------------------------


def find_checkpoint(path: Path, *, best: bool = False, step: int | None = None) -> Path:
    """The checkpoint that a path means.

    Args:
        path: a run directory, of which the newest is taken, or one of its checkpoints.
        best: take the run's best.
        step: take that of this step.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    newest = storage.find_checkpoints(path)[0]
    if best:
        name = storage.best(path / "checkpoints")
        if name is None:
            raise CheckpointError(f"{path} has no best checkpoint: leave out --best")
        return storage.find_checkpoints(path / "checkpoints" / name)[0]
    if step is not None:
        found = storage.path_of(path / "checkpoints", step)
        if not found.is_dir():
            steps = [place.name.removeprefix("step_").lstrip("0") or "0" for place in all_of(path)]
            raise CheckpointError(
                f"{path} has no checkpoint of step {step} (known: {', '.join(steps) or 'none'})"
            )
        return storage.find_checkpoints(found)[0]
    return newest


def all_of(path: Path) -> list[Path]:
    """The checkpoints of a run, in the order of training; none of what is no run."""
    return storage.list_checkpoints(path / "checkpoints")[::-1]


def run_of(checkpoint: Path, path: Path) -> Path:
    """The run directory that a checkpoint lies in.

    Args:
        checkpoint: its directory.
        path: by which it was named, for the message.

    Raises:
        CheckpointError: it lies elsewhere.
    """
    run = checkpoint.absolute().parent.parent
    if not (run / CONFIG).is_file():
        raise CheckpointError(f"{path} does not lie in a run directory: there is no {run / CONFIG}")
    return run


def class_names(known: Sequence[str], size: int) -> list[str]:
    """The names of a classifier's outputs: those that are known, and numbers for the others."""
    return [*known[:size], *(str(number) for number in range(len(known), size))]


# Building -------------------------------------------------------------------------------------------------------------


def config_of(
    run: Path, plugins: Sequence[str], overrides: Sequence[str] = (), device: str = "auto"
) -> Config:
    """The config of a run, for one process and uncompiled.

    Args:
        run: its directory.
        plugins: the modules that may be imported, if its config names them.
        overrides: ``data.KEY=VALUE`` or ``data=NAME``, as on the command line of training.
        device: where it is built; ``auto``: the best that this machine has.

    Raises:
        UserError: the config cannot be read or does not fit this version, or an override is wrong.
    """
    values = read_frozen(run / CONFIG)
    refuse_unnamed(list(map(str, values.get("plugins") or ())), list(plugins), run, "--plugins {}")
    load_plugins([])
    for module in plugins:
        import_plugin(module)
    values = {**values, "data": with_overrides(values.get("data"), overrides)}
    config = check_config({**values, "device": device, "parallel": {"name": "none"}})
    return replace(config, loop=replace(config.loop, compile=False))


def with_overrides(data: Any, overrides: Sequence[str]) -> Any:
    """The config group ``data`` with options set anew.

    Raises:
        ConfigError: an override cannot be read, or is of something else.
    """
    for override in parse_overrides(list(overrides)):
        group, _, key = override.key_or_group.partition(".")
        changes = override.is_sweep_override() or override.is_delete()
        if group != "data" or changes or override.package or (key and not isinstance(data, dict)):
            raise ConfigError(
                f"{override.input_line} is wrong here: only the data's options can be given, each with one value, "
                "such as data.batch_size=64"
            )
        data = {**data, key: override.value()} if key else {"name": override.value()}
    return data


def build_again(run: Path, plugins: Sequence[str], overrides: Sequence[str] = ()) -> RunParts:
    """Builds all of a run's parts again; see `config_of`.

    Raises:
        UserError: its config cannot be read, or does not fit this machine or this version any more.
    """
    with replaced_weights():
        return build(config_of(run, plugins, overrides))


def load(parts: RunParts, checkpoint: Path) -> None:
    """Puts a run's parts to where they were at a checkpoint, with the weights by which the model is evaluated.

    Raises:
        UserError: it is damaged, another model's, or in another format.
    """
    content = read_verified(checkpoint)
    parts.state.load(content, content["values"])
    if isinstance(parts.optimizer, HasTwoWeights):
        parts.optimizer.eval()


@dataclass(frozen=True)
class TrainedModel:
    """A run's model with the weights of a checkpoint, in eval mode, and what it was trained on; no optimizer."""

    run: Path
    checkpoint: Path
    config: Config
    device: torch.device
    data: Data
    model: nn.Module
    logits_of: str | None
    """What the model's outputs are logits of: ``classes``, ``tokens``, or neither."""
    precision: Precision

    def class_names(self, size: int) -> list[str]:
        """The names of a classifier's outputs, as `class_names` gives them."""
        return class_names(self.data.classes, size)


def open_model(args: Namespace, device: str = "auto") -> TrainedModel:
    """The trained model that a command's arguments name, as `add_run_arguments` adds them.

    Raises:
        UserError: there is no such run or checkpoint, or it cannot be built any more.
    """
    checkpoint = find_checkpoint(args.path, best=args.best, step=args.step)
    run = run_of(checkpoint, args.path)
    config = config_of(run, args.plugins, args.overrides, device)
    where = pick_device(config.device, SINGLE_PROCESS)
    data = load_data(config, where)
    with replaced_weights():
        model = build_model(config, data)
    initialize_lazy_layers(model, data)
    load_all(model, checkpoint, ema=args.ema)
    return TrainedModel(
        run=run,
        checkpoint=checkpoint,
        config=config,
        device=where,
        data=data,
        model=model.to(where).eval(),
        logits_of=OBJECTIVES.build(objective_config(config)).logits_of,
        precision=Precision(config.precision.name, where),
    )


def load_all(model: nn.Module, checkpoint: Path, *, ema: bool) -> None:
    """Gives a model the weights of a checkpoint, and the buffers that its state dict leaves out.

    Raises:
        CheckpointError: the checkpoint is damaged or another model's, or has no averaged weights.
    """
    weights = weights_of(checkpoint, ema=ema)
    known = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name not in known}
    weights = {name: value for name, value in weights.items() if name not in buffers}
    if found := mismatches(known, weights):
        kind, names = next(iter(found.items()))
        raise CheckpointError(f"{checkpoint} is of another model: {kind}: {names[0]}")
    model.load_state_dict(weights)
    for name, value in read(checkpoint, part="buffers")["buffers"].items():
        if name in buffers and buffers[name].shape == value.shape:
            buffers[name].copy_(value)
