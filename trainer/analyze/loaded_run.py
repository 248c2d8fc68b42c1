"""The run that is analysed: its model and optimizer at one of its checkpoints, opened for reading."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.analyze.norms import Norm, is_norm
from trainer.cli.stored_run import all_of, build_again, find_checkpoint, load, run_of
from trainer.data import Batch
from trainer.errors import ConfigError, UserError, nearest
from trainer.optim.kronecker.rows import MatrixLayer, is_matrix_layer

LARGEST = 1024
"""Columns of a layer that is analysed without being named: the time for eigenvalues grows with their cube."""


class DoesNotFit(UserError):
    """An analysis needs something that this run does not have."""


@dataclass(frozen=True)
class Settings:
    """How much is computed."""

    layers: str | None = None
    """A pattern of layer names, such as ``features.*``; None: the first, a middle and the last Linear or Conv2d."""
    steps: tuple[int, ...] | Literal["all"] | None = None
    """Of the checkpoints whose factors are computed; None: of the one that the run is at."""
    batches: int = 4
    """Training batches that a mean is over."""
    points: int = 17
    """Points a side of a loss landscape."""
    sigma: float = 1e-3
    """Standard deviation of the noise that is added off the diagonal."""
    axes: str | None = None
    """The two weights that a plane is of, such as ``1.weight:0,1.weight:1``; None: the principal directions."""


@dataclass(frozen=True)
class Finding:
    """What an analysis found."""

    rows: list[dict[str, Any]]
    """Numbers, strings and lists of numbers by name; a row is a layer's factor, a checkpoint or a plane."""
    shown: Any = field(repr=False)
    """What the figure is drawn from."""


class LoadedRun:
    """A run's model and optimizer, as they were at a checkpoint. Nothing in the run is changed.

    Args:
        path: a run directory, of which the newest checkpoint is taken, or one of its checkpoints.
        plugins: the modules that may be imported, if the run's config names them.

    Raises:
        UserError: it is neither, or the run cannot be built any more, for instance because its data is gone.
    """

    def __init__(self, path: Path, plugins: list[str] | None = None) -> None:
        self.checkpoint = find_checkpoint(path)
        self.run = run_of(self.checkpoint, path)
        self.checkpoints = all_of(self.run)
        """All of the run's, in the order of training."""
        self.parts = build_again(self.run, plugins or [])
        self.model = self.parts.model
        self.load(self.checkpoint)

    def load(self, place: Path) -> int:
        """Puts model and optimizer to where they were at a checkpoint, and returns its step.

        Raises:
            UserError: it is damaged, another model's, or in another format.
        """
        load(self.parts, place)
        torch.manual_seed(self.parts.config.seed)  # of dropout
        return self.parts.counters.step

    def places(self, steps: tuple[int, ...] | Literal["all"] | None) -> list[Path]:
        """The checkpoints of these steps; see `Settings.steps`.

        Raises:
            CheckpointError: there is none of a step.
        """
        if steps is None:
            return [self.checkpoint]
        if steps == "all":
            return self.checkpoints
        return [find_checkpoint(self.run, step=step) for step in steps]

    def batches(self, count: int) -> list[Batch]:
        """The run's first training batches, augmented as they were; of an accumulated batch its parts."""
        loader = self.parts.state.loader
        loader.load_state_dict({"epoch": 0, "batch": 0})
        parts = [part for _ in range(count) for part in loader.next_batch()]
        loader.close()
        return parts

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The training loss of a batch, a mean over its samples."""
        return self.parts.objective.loss(lambda inputs: outputs, batch)[0]

    def layers(self, pattern: str | None) -> dict[str, MatrixLayer | Norm]:
        """The layers of a pattern, norms too; if there is none, the first, a middle and the last one of moderate size.

        Raises:
            ConfigError: the pattern matches none.
            DoesNotFit: the model has no Linear or Conv2d layer.
        """
        modules = dict(self.model.named_modules())
        matrices = {name: module for name, module in modules.items() if is_matrix_layer(module)}
        if pattern is not None:
            known: dict[str, MatrixLayer | Norm] = {
                name: module for name, module in modules.items() if is_matrix_layer(module) or is_norm(module)
            }
            found = {name: module for name, module in known.items() if fnmatchcase(name, pattern)}
            if not found:
                raise ConfigError(
                    f"--layers {pattern!r} matches no Linear, Conv2d or norm layer{nearest(pattern, known)}"
                )
            return found
        if not matrices:
            raise DoesNotFit(f"the model of {self.run} has no Linear or Conv2d layer")
        moderate = [name for name, module in matrices.items() if largest_side(module) <= LARGEST]
        if not moderate:
            raise DoesNotFit(f"all layers are large: choose with --layers{nearest('', matrices)}")
        places = dict.fromkeys((0, len(moderate) // 2, len(moderate) - 1))
        return {moderate[place]: matrices[moderate[place]] for place in places}


def names_of(runs: Sequence[LoadedRun]) -> list[str]:
    """What to call runs: the names of their directories, or where two are the same, the paths."""
    names = [run.run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.run) for run in runs]


def refuse_others(runs: Sequence[LoadedRun]) -> None:
    """Refuses runs of another model or of other data than the first one's: there is nothing to lay side by side.

    Raises:
        ConfigError: a run's model has other weights, or its data are others.
    """
    first, *others = runs
    shapes = {name: tuple(p.shape) for name, p in first.model.named_parameters()}
    data = first.parts.config.data["name"]
    for other in others:
        if (theirs := other.parts.config.data["name"]) != data:
            raise ConfigError(f"{other.run} was trained on data={theirs}, {first.run} on data={data}")
        if {name: tuple(p.shape) for name, p in other.model.named_parameters()} != shapes:
            raise ConfigError(f"the model of {other.run} has other weights than that of {first.run}")


def largest_side(module: MatrixLayer) -> int:
    """The larger of the rows and the columns of a layer's weight as a matrix."""
    rows = len(module.weight)
    return max(rows, module.weight.numel() // rows)
