"""The training loss over two planes of weights through a checkpoint.

One plane is spanned by two random directions in which every filter is as long as the network's own, so that the
network's scale does not decide how flat it looks (Li et al., Visualizing the Loss Landscape of Neural Nets, 2018,
arXiv 1712.09913); the other by the two directions in which the checkpoints of the run differ most from this one.
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
"""Of the random directions, in lengths of the network's filters."""
MARGIN = 0.25
"""Of the trajectory's plane, around what the checkpoints span."""

Weights = Mapping[str, Tensor]
Loss = Callable[[dict[str, Tensor]], float]


@dataclass(frozen=True)
class Plane:
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
    """Share of the checkpoints' squared distances along x and y."""


def random_direction(weights: Weights, generator: torch.Generator) -> dict[str, Tensor]:
    """Gaussian, each filter (row of a matrix) as long as that of the weights; zero for vectors: biases and norms."""
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
    """The two orthonormal directions [2, P] that n points [n, P] lie along most, seen from the origin.

    Beside them the shares of the points' squared distances; None if the points span no plane.
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
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def flat(weights: Weights) -> Tensor:
    return torch.cat([weight.flatten().float().cpu() for weight in weights.values()])


def unflat(vector: Tensor, like: Weights) -> dict[str, Tensor]:
    parts = vector.split([weight.numel() for weight in like.values()])
    return {
        name: part.view(weight.shape).to(weight)
        for part, (name, weight) in zip(parts, like.items(), strict=True)
    }


def random_plane(loss: Loss, centre: Weights, points: int) -> Plane:
    generator = torch.Generator().manual_seed(SEED)
    directions = random_direction(centre, generator), random_direction(centre, generator)
    axis = torch.linspace(-REACH, REACH, points)
    return Plane("random", axis, axis, losses_on(loss, centre, directions, axis, axis))


def trajectory_plane(run: LoadedRun, loss: Loss, centre: Weights, points: int) -> Plane | None:
    """None if the run's checkpoints span no plane: there are fewer than three."""
    offsets = []
    for place in run.checkpoints:
        run.load(place)
        offsets.append(flat(weights_of(run.model)) - flat(centre))
    found = principal_directions(torch.stack(offsets))
    if found is None:
        return None
    directions, explained = found
    path = torch.stack(offsets) @ directions.T  # [checkpoints, 2]
    x, y = (spread(path[:, axis], points) for axis in (0, 1))
    along = unflat(directions[0], centre), unflat(directions[1], centre)
    return Plane("trajectory", x, y, losses_on(loss, centre, along, x, y), path, explained)


def spread(places: Tensor, points: int) -> Tensor:
    """Points from before the lowest place to behind the highest."""
    low, high = places.min().item(), places.max().item()
    margin = MARGIN * (high - low)
    return torch.linspace(low - margin, high + margin, points)


def analyse(run: LoadedRun, settings: Settings) -> Finding:
    """The loss over both planes, or over the random one alone if the run has fewer than three checkpoints."""
    centre, loss = weights_of(run.model), loss_of_weights(run, settings.batches)
    planes = [random_plane(loss, centre, settings.points)]
    if (trajectory := trajectory_plane(run, loss, centre, settings.points)) is not None:
        planes.append(trajectory)
    here = loss(centre)
    return Finding([row(plane, here) for plane in planes], planes)


def row(plane: Plane, here: float) -> dict[str, Any]:
    finite = plane.losses[plane.losses.isfinite()]
    return {
        "plane": plane.name,
        "loss": here,
        "lowest": finite.min().item() if len(finite) else None,
        "highest": finite.max().item() if len(finite) else None,
        "explained": sum(plane.explained) if plane.explained else None,
        "x": plane.x.tolist(),
        "y": plane.y.tolist(),
        "losses": plane.losses.tolist(),
        **({} if plane.path is None else {"path": plane.path.tolist()}),
    }
