"""Directions and losses against quadratics, whose landscape is known."""

import pytest
import torch
from torch import nn

from trainer.analyze.landscape import axis_around, losses_on, principal_directions, random_direction


def test_loss_of_a_linear_network_over_two_directions() -> None:
    """Half the squared error of W x is a quadratic form in W around its solution."""
    layer = nn.Linear(3, 2, bias=False).double()
    x = torch.randn(50, 3, dtype=torch.float64)
    target = layer(x).detach()
    centre = {"weight": layer.weight.detach()}
    first, second = ({"weight": torch.randn(2, 3, dtype=torch.float64)} for _ in range(2))

    def loss(weights: dict[str, torch.Tensor]) -> float:
        return (x @ weights["weight"].T - target).square().sum(1).mean().item() / 2

    a, b = torch.linspace(-1, 1, 5), torch.linspace(-2, 1, 4)
    got = losses_on(loss, centre, (first, second), a, b)
    covariance = x.T @ x / len(x)
    for i, down in enumerate(b.tolist()):
        for j, right in enumerate(a.tolist()):
            D = right * first["weight"] + down * second["weight"]
            assert got[i, j].item() == pytest.approx((D @ covariance * D).sum().item() / 2)


def test_random_directions_have_the_length_of_every_filter() -> None:
    weights = {"conv": torch.randn(4, 3, 2, 2), "bias": torch.randn(4), "dead": torch.zeros(2, 3)}
    direction = random_direction(weights, torch.Generator().manual_seed(0))
    lengths = [w.flatten(1).norm(dim=1) for w in (weights["conv"], direction["conv"])]
    torch.testing.assert_close(*lengths)
    assert not direction["bias"].any()
    assert not direction["dead"].any()
    other = random_direction(weights, torch.Generator().manual_seed(1))
    assert not torch.equal(direction["conv"], other["conv"])


def test_principal_directions_find_the_plane_that_points_lie_in() -> None:
    basis, _ = torch.linalg.qr(torch.randn(40, 2))
    places = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    found = principal_directions(places @ basis.T)
    assert found is not None
    directions, explained = found
    torch.testing.assert_close(directions @ directions.T, torch.eye(2), atol=1e-5, rtol=0)
    torch.testing.assert_close((directions @ basis).abs(), torch.eye(2), atol=1e-5, rtol=0)
    assert explained == pytest.approx((18 / 20, 2 / 20))


@pytest.mark.parametrize("points", [torch.zeros(1, 5), torch.zeros(3, 5), torch.ones(4, 5)])
def test_points_on_a_line_span_no_plane(points: torch.Tensor) -> None:
    assert principal_directions(points) is None


def test_a_grid_reaches_beyond_what_it_shows() -> None:
    assert axis_around(torch.tensor([0.0, 4.0, 2.0]), 5).tolist() == [-1.0, 0.5, 2.0, 3.5, 5.0]
