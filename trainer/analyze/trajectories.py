"""The ways of runs of one model over one plane of its weights, and the training loss on that plane.

The plane's axes are two weights that are named, of a network small enough that two say much; all other weights are then
those of the first run's checkpoint. Or they are the two principal directions of all checkpoints of all runs, through
their mean: the plane to which the checkpoints are nearest. Both are projections: the loss at a checkpoint is not that
of the plane below it, and the table has both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.analyze.landscape import (
    Weights,
    axis_around,
    flat,
    loss_of_weights,
    losses_on,
    principal_directions,
    unflat,
    weights_of,
)
from trainer.analyze.loaded_run import DoesNotFit, Finding, LoadedRun, Settings, names_of, refuse_others
from trainer.cli.common import progress
from trainer.errors import ConfigError, nearest


@dataclass(frozen=True)
class Way:
    """The checkpoints of a run, n of them, in the order of training."""

    run: str
    steps: list[int]
    weights: Tensor
    """[n, P], all weights of the model."""


@dataclass(frozen=True)
class Projection:
    """A plane in the space of all P weights, with the two numbers that each point is drawn at."""

    centre: Tensor
    """[P]"""
    directions: Tensor
    """[2, P], orthonormal."""
    labels: tuple[str, str]

    def __call__(self, weights: Tensor) -> Tensor:
        """[n, P] -> [n, 2]."""
        return (weights - self.centre) @ self.directions.T


@dataclass(frozen=True)
class Map:
    """The loss over a grid of points in a plane, and the ways over it."""

    x: Tensor
    """[points]"""
    y: Tensor
    """[points]"""
    losses: Tensor
    """[points, points], y first."""
    labels: tuple[str, str]
    """Of x and y."""
    paths: Mapping[str, Tensor]
    """[checkpoints, 2] by run."""


def way(run: LoadedRun, name: str) -> Way:
    """All of a run's checkpoints."""
    steps, weights = [], []
    for place in progress(run.checkpoints, name):
        steps.append(run.load(place))
        weights.append(flat(weights_of(run.model)))
    return Way(name, steps, torch.stack(weights))


def entries(axes: str, weights: Weights) -> list[tuple[str, int]]:
    """The two weights that ``--axes`` names, each by its parameter and its place in that.

    Args:
        axes: ``NAME``, a parameter of two entries, or ``NAME:PLACE,NAME:PLACE``.
        weights: of the model.

    Raises:
        ConfigError: it names none, or not exactly two.
    """
    found = []
    for part in axes.split(","):
        name, _, place = part.partition(":")
        if name not in weights:
            raise ConfigError(f"--axes: the model has no parameter {name!r}{nearest(name, weights)}")
        size = weights[name].numel()
        if place and not (place.isascii() and place.isdigit() and int(place) < size):
            raise ConfigError(f"--axes {part}: {place!r} is none of the {size} places, 0 to {size - 1}")
        found += [(name, int(place))] if place else [(name, number) for number in range(size)]
    if len(found) != 2 or found[0] == found[1]:
        raise ConfigError(
            f"--axes {axes} is not two weights but {len(set(found))}: name them by their places, such as "
            f"{found[0][0]}:0,{found[0][0]}:1"
        )
    return found


def plane_of_weights(centre: Weights, axes: str) -> Projection:
    """The plane of two weights, at their values."""
    two = entries(axes, centre)
    starts, place = {}, 0
    for name, weight in centre.items():
        starts[name] = place
        place += weight.numel()
    directions = torch.zeros(2, place)
    for direction, (name, number) in zip(directions, two, strict=True):
        direction[starts[name] + number] = 1
    values = flat(centre)
    first, second = (f"{name}:{number}" for name, number in two)
    return Projection(values * (1 - directions.sum(0)), directions, (first, second))


def principal_plane(ways: Sequence[Way]) -> Projection:
    """The plane to which the checkpoints are nearest.

    Raises:
        DoesNotFit: the checkpoints span none.
    """
    weights = torch.cat([way.weights for way in ways])
    mean = weights.mean(0)
    if (found := principal_directions(weights - mean)) is None:
        raise DoesNotFit("the checkpoints span no plane: keep more with checkpoint.keep_last")
    directions, shares = found
    first, second = (f"{100 * share:.1f} % of the squared distances" for share in shares)
    return Projection(mean, directions, (first, second))


def analyse(runs: Sequence[LoadedRun], settings: Settings) -> Finding:
    """The way of each run over the loss on the plane.

    Raises:
        ConfigError: the runs do not belong together, or ``axes`` names no two weights.
        DoesNotFit: the checkpoints span no plane, or none moves along one of the axes.
    """
    refuse_others(runs)
    centre, loss = weights_of(runs[0].model), loss_of_weights(runs[0], settings.batches)
    ways = [way(run, name) for run, name in zip(runs, names_of(runs), strict=True)]
    project = plane_of_weights(centre, settings.axes) if settings.axes else principal_plane(ways)
    paths = {way.run: project(way.weights) for way in ways}
    places = torch.cat([*paths.values()])
    for label, least, most in zip(project.labels, places.amin(0), places.amax(0), strict=True):
        if least == most:
            raise DoesNotFit(f"{label} is the same at all checkpoints: choose other --axes")
    x, y = (axis_around(places[:, axis], settings.points) for axis in (0, 1))
    middle = unflat(project.centre, centre)
    along = unflat(project.directions[0], centre), unflat(project.directions[1], centre)
    losses = losses_on(loss, middle, along, x, y)

    def row(way: Way) -> dict[str, Any]:
        path = paths[way.run]
        below = project.centre + path[-1] @ project.directions
        return {
            "run": way.run,
            "checkpoints": len(way.steps),
            "last_step": way.steps[-1],
            "x_at_last": path[-1, 0].item(),
            "y_at_last": path[-1, 1].item(),
            "loss_at_last": loss(unflat(way.weights[-1], centre)),
            "loss_of_the_plane_there": loss(unflat(below, centre)),
            "steps": way.steps,
            "path": path.tolist(),
        }

    return Finding([row(way) for way in ways], Map(x, y, losses, project.labels, paths))
