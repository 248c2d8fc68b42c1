"""The training loss over two planes of weights through a checkpoint.

One plane is spanned by two random directions in which every filter has the norm of the network's own, so that the
scale of the weights does not decide how flat the loss looks (Li et al., Visualizing the Loss Landscape of Neural Nets,
2018, arXiv 1712.09913); the other by the two directions in which the run's checkpoints differ most from this one.
Dropout is off and BatchNorm normalises by the batch, so that the loss is a function of the weights alone.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.analyze.loaded_run import Finding, LoadedRun, Settings
from trainer.cli.common import progress

SEED = 0
REACH = 1.0
"""Half the width of the random plane, in norms of the network's filters."""
MARGIN = 0.25
"""Of the trajectory's plane on each side, in widths of what the checkpoints span."""

Weights = Mapping[str, Tensor]
Loss = Callable[[dict[str, Tensor]], float]


@dataclass(frozen=True)
class Plane:
    """The loss over a grid of points in a plane of weights, with the checkpoint at 0, 0."""

    name: str
    x: Tensor
    """[points]"""
    y: Tensor
    """[points]"""
    losses: Tensor
    """[points, points], y first."""
    path: Tensor | None = None
    """[checkpoints, 2], x and y, in the order of training."""
    explained: tuple[float, float] | None = None
    """Shares of the checkpoints' squared distances along x and y."""


def random_direction(weights: Weights, generator: torch.Generator) -> dict[str, Tensor]:
    """A Gaussian direction in which each filter (row of a matrix) has the norm of that of the weights.

    It is zero for vectors: biases and parameters of norms.
    """
    direction = {}
    for name, weight in weights.items():
        if weight.dim() < 2:
            direction[name] = torch.zeros_like(weight)
            continue
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        lengths = weight.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1)
        direction[name] = noise * lengths.view(-1, *(1,) * (weight.dim() - 1))
    return direction


def principal_directions(offsets: Tensor) -> tuple[Tensor, tuple[float, float]] | None:
    """The two orthonormal directions [2, P] with the largest shares of the squared distances of n points [n, P] from 0.

    Returns:
        The directions and their shares; None if the points span no plane.
    """
    gram = (offsets @ offsets.T).double()
    shares, vectors = torch.linalg.eigh(gram)  # ascending
    if len(offsets) < 2 or shares[-2] <= 1e-9 * shares[-1]:
        return None
    top = vectors[:, [-1, -2]] / shares[[-1, -2]].sqrt()  # [n, 2]
    total = shares.clamp(min=0).sum()
    first, second = (shares[[-1, -2]] / total).tolist()
    return top.T.to(offsets) @ offsets, (first, second)


def losses_on(
    loss: Loss,
    centre: Weights,
    directions: tuple[Weights, Weights],
    x: Tensor,
    y: Tensor,
) -> Tensor:
    """The loss at centre + x · first + y · second: [len(y), len(x)]."""
    places = [(b, a) for b in y.tolist() for a in x.tolist()]
    first, second = directions
    values = [
        loss({name: w + a * first[name] + b * second[name] for name, w in centre.items()})
        for b, a in progress(places, "landscape")
    ]
    return torch.tensor(values, dtype=torch.float64).view(len(y), len(x))


def loss_of_weights(run: LoadedRun, batches: int) -> Loss:
    """The mean loss over the first training batches, as a function of the parameters."""
    model = deepcopy(run.model).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.train()
            module.track_running_stats = False
    data = run.batches(batches)

    @torch.no_grad()
    def loss(weights: dict[str, Tensor]) -> float:
        losses = [run.loss(functional_call(model, weights, (batch[0],)), batch) for batch in data]
        return torch.stack(losses).mean().item()

    return loss


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of a model's parameters by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def flat(weights: Weights) -> Tensor:
    """All weights as one vector [P], float32, on the CPU."""
    return torch.cat([weight.flatten().float().cpu() for weight in weights.values()])


def unflat(vector: Tensor, like: Weights) -> dict[str, Tensor]:
    """A vector [P] as weights with the names, shapes, dtypes and devices of others."""
    parts = vector.split([weight.numel() for weight in like.values()])
    return {
        name: part.view(weight.shape).to(weight)
        for part, (name, weight) in zip(parts, like.items(), strict=True)
    }


def random_plane(loss: Loss, centre: Weights, points: int) -> Plane:
    """The loss over points × points in the plane of two random directions."""
    generator = torch.Generator().manual_seed(SEED)
    directions = random_direction(centre, generator), random_direction(centre, generator)
    axis = torch.linspace(-REACH, REACH, points)
    return Plane("random", axis, axis, losses_on(loss, centre, directions, axis, axis))


def trajectory_plane(run: LoadedRun, loss: Loss, centre: Weights, points: int) -> Plane | None:
    """The loss over points × points in the plane along which the checkpoints differ most from the centre.

    None if the run's checkpoints span no plane: there are fewer than three.
    """
    offsets = []
    for place in run.checkpoints:
        run.load(place)
        offsets.append(flat(weights_of(run.model)) - flat(centre))
    found = principal_directions(torch.stack(offsets))
    if found is None:
        return None
    directions, explained = found
    path = torch.stack(offsets) @ directions.T  # [checkpoints, 2]
    x, y = (axis_around(path[:, axis], points) for axis in (0, 1))
    along = unflat(directions[0], centre), unflat(directions[1], centre)
    return Plane("trajectory", x, y, losses_on(loss, centre, along, x, y), path, explained)


def axis_around(places: Tensor, points: int) -> Tensor:
    """Evenly spaced points [points] from `MARGIN` below the lowest place to `MARGIN` above the highest."""
    low, high = places.min().item(), places.max().item()
    margin = MARGIN * (high - low)
    return torch.linspace(low - margin, high + margin, points)


def analyse(run: LoadedRun, settings: Settings) -> Finding:
    """The loss over both planes; over the random one alone if the run has fewer than three checkpoints."""
    centre, loss = weights_of(run.model), loss_of_weights(run, settings.batches)
    planes = [random_plane(loss, centre, settings.points)]
    if (trajectory := trajectory_plane(run, loss, centre, settings.points)) is not None:
        planes.append(trajectory)
    at_centre = loss(centre)
    return Finding([plane_row(plane, at_centre) for plane in planes], planes)


def plane_row(plane: Plane, at_centre: float) -> dict[str, Any]:
    """The numbers of a plane, with the loss at its centre."""
    finite = plane.losses[plane.losses.isfinite()]
    return {
        "plane": plane.name,
        "loss": at_centre,
        "lowest": finite.min().item() if len(finite) else None,
        "highest": finite.max().item() if len(finite) else None,
        "explained": sum(plane.explained) if plane.explained else None,
        "x": plane.x.tolist(),
        "y": plane.y.tolist(),
        "losses": plane.losses.tolist(),
        **({} if plane.path is None else {"path": plane.path.tolist()}),
    }
