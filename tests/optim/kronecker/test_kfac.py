"""K-FAC and E-KFAC against dense algebra, curvlinops and Newton's step."""

import pytest
import torch
from torch import nn

from tests.optim.kronecker.small import (
    LAYERS,
    PLAIN,
    batch,
    build,
    gradients,
    matrix,
    network,
    rows_of,
    sample_gradients,
    step_of,
    take_step,
)
from trainer.errors import ConfigError
from trainer.optim.kronecker.inverses import damped_inverse

DAMPING = 1e-2


def dense(A: torch.Tensor, G: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """(G ⊗ A)⁻¹ vec ∇ by the matrix itself; both are damped already."""
    return torch.linalg.solve(torch.kron(G, A), gradient.flatten()).view_as(gradient)


def test_the_step_is_that_of_the_dense_kronecker_product() -> None:
    model, _, taken = step_of("kfac", damping=DAMPING)
    grads = gradients(model)
    for layer, (h, s) in rows_of(model).items():
        per_sample = h.shape[1]
        h, s = h.flatten(0, 1), s.flatten(0, 1)
        A, G = h.T @ h / len(h), s.T @ s / len(s) * per_sample
        pi = (A.trace() / len(A) / (G.trace() / len(G))).sqrt()
        A = A + pi * DAMPING**0.5 * torch.eye(len(A)).double()
        G = G + DAMPING**0.5 / pi * torch.eye(len(G)).double()
        torch.testing.assert_close(matrix(taken, layer), dense(A, G, matrix(grads, layer)))
    torch.testing.assert_close(taken["1.weight"], grads["1.weight"])


@pytest.mark.parametrize("ekfac", [False, True])
def test_the_step_is_that_of_curvlinops(ekfac: bool) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    model, (x, y) = network(), batch()
    params = dict(model.named_parameters())
    if ekfac:  # its first step begins a basis, in which the second one estimates eigenvalues
        optimizer = build(model, "kfac", **{**PLAIN, "lr": 0.0}, damping=DAMPING, ekfac=True)
        take_step(model, optimizer)
        optimizer.param_groups[0]["lr"] = 1.0
        before = {name: p.detach().clone() for name, p in params.items()}
        take_step(model, optimizer)
        taken = {name: before[name] - p.detach() for name, p in params.items()}
        model.load_state_dict(before)
    else:
        model, _, taken = step_of("kfac", damping=DAMPING)
        params = dict(model.named_parameters())
    named = {f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")} & params.keys()
    names = [name for name in params if name in named]
    kind = curvlinops.EKFACLinearOperator if ekfac else curvlinops.KFACLinearOperator
    operator = kind(
        model,
        nn.CrossEntropyLoss(),
        [params[name] for name in names],
        [(x, y)],
        fisher_type="empirical",
        kfac_approx="expand",
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    inverse = curvlinops.KFACInverseLinearOperator(
        operator, damping=DAMPING, use_heuristic_damping=not ekfac, use_exact_damping=ekfac
    )
    grads = gradients(model)
    for name, theirs in zip(names, inverse @ [grads[name] for name in names], strict=True):
        torch.testing.assert_close(taken[name], theirs, rtol=1e-6, atol=1e-9)


def test_ekfac_has_the_mean_squares_of_projected_sample_gradients() -> None:
    model = network()
    optimizer = build(model, "kfac", **{**PLAIN, "lr": 0.0}, damping=DAMPING, ekfac=True)
    samples, grads = sample_gradients(model), gradients(model)
    take_step(model, optimizer)
    take_step(model, optimizer, parts=3)
    for layer in LAYERS:
        weight = model.get_submodule(layer).weight
        state = optimizer.state[weight]
        Q = torch.kron(state["G_basis"], state["A_basis"])
        projected = matrix(samples, layer, 1).flatten(1) @ Q
        eigenvalues = projected.square().mean(0)
        torch.testing.assert_close(state["eigenvalues"].flatten(), eigenvalues)
        gradient = matrix(grads, layer)
        expected = Q @ ((Q.T @ gradient.flatten()) / (eigenvalues + DAMPING))
        got = optimizer.update(optimizer.layers[weight], state, gradient)
        torch.testing.assert_close(got.flatten(), expected)


def white(rows: int, columns: int) -> torch.Tensor:
    """Rows of mean zero whose second moment is the identity."""
    first = torch.tensor(0)
    basis, _ = torch.linalg.qr(torch.randn(rows, columns + 1).double().index_fill(1, first, 1.0))
    return basis[:, 1:] * rows**0.5


def test_one_step_solves_a_quadratic() -> None:
    """Least squares whose residuals are white, so that the Fisher is the Hessian."""
    layer, x = nn.Linear(4, 3).double(), torch.randn(12, 4).double() @ torch.randn(4, 4).double()
    target = (layer(x) - white(12, 3)).detach()
    optimizer = build(layer, "kfac", **PLAIN, damping=1e-16)
    ((layer(x) - target).square().sum(1).mean() / 2).backward()
    optimizer.step()
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(12, 1).double()], 1), target).solution
    torch.testing.assert_close(torch.cat([layer.weight, layer.bias[:, None]], 1), solution.T)


def test_intervals_and_averages() -> None:
    model = network()
    options = {"factor_interval": 2, "inverse_interval": 4, "factor_decay": 0.5}
    optimizer = build(model, "kfac", **{**PLAIN, "lr": 0.0}, **options)
    state = optimizer.state[model[6].weight]
    seen, inverses, refreshes = [], [], []
    for seed in range(5):
        refreshes.append(optimizer.needs_refresh)
        take_step(model, optimizer, seed)
        h = model[:6](batch(seed)[0])
        h = torch.cat([h, h.new_ones(len(h), 1)], 1)
        seen.append(h.T @ h / len(h))
        inverses.append(state["A_inverse"].clone())
    assert refreshes == [True, False, True, False, True]
    # the first two weigh the same; then old ones weigh half
    expected = ((seen[0] + seen[2]) / 2 + seen[4]) / 2
    torch.testing.assert_close(state["A"], expected)
    assert all(torch.equal(inverses[0], other) for other in inverses[1:4])
    assert not torch.equal(inverses[0], inverses[4])


@pytest.mark.parametrize("ekfac", [False, True])
def test_a_layer_that_is_called_late_is_preconditioned_at_once(ekfac: bool) -> None:
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    optimizer = build(model, "kfac", **PLAIN, factor_interval=2, inverse_interval=10, ekfac=ekfac)
    before = model[1].weight.clone()
    for step in range(3):
        optimizer.zero_grad()
        x = model[0](torch.randn(4, 3))
        (model[1](x) if step else x).square().sum(1).mean().backward()
        weight = model[1].weight.clone()
        optimizer.step()
        if step == 1:  # no refresh yet: the plain gradient
            torch.testing.assert_close(weight - model[1].weight, model[1].weight.grad)
    assert not torch.equal(weight, before)
    moved = weight - model[1].weight
    assert moved.any()
    assert not torch.allclose(moved, model[1].weight.grad)


def test_a_factor_that_rounding_made_indefinite_is_inverted() -> None:
    basis, _ = torch.linalg.qr(torch.randn(3, 3))
    factor = basis * torch.tensor([1.0, 0.5, -1e-3]) @ basis.T
    inverse = damped_inverse(factor, 1e-4)
    torch.testing.assert_close(
        inverse, basis * torch.tensor([1 / 1.0001, 1 / 0.5001, 1e4]) @ basis.T, rtol=1e-3, atol=1e-3
    )


def test_ekfac_needs_a_step_between_refreshes() -> None:
    with pytest.raises(ConfigError, match=r"optimizer.factor_interval=1 must be >= 2$"):
        build(network(), "kfac", ekfac=True, factor_interval=1)


@pytest.mark.parametrize("intervals", [(2, 1), (10, 5), (3, 10)])
def test_ekfac_takes_no_bases_between_refreshes(intervals: tuple[int, int]) -> None:
    factor, inverse = intervals
    expected = rf"inverse_interval={inverse} must be a multiple of optimizer.factor_interval={factor}$"
    with pytest.raises(ConfigError, match=expected):
        build(network(), "kfac", ekfac=True, factor_interval=factor, inverse_interval=inverse)


@pytest.mark.parametrize("intervals", [(2, 2), (2, 6), (3, 3)])
def test_ekfac_keeps_its_eigenvalues_until_it_has_new_bases(intervals: tuple[int, int]) -> None:
    factor, inverse = intervals
    model = network()
    optimizer = build(model, "kfac", ekfac=True, factor_interval=factor, inverse_interval=inverse)
    state = optimizer.state[model[6].weight]
    for step in range(8):
        take_step(model, optimizer, step)
        since = step % inverse
        assert state["estimates"] == sum(passed % factor == 1 for passed in range(since + 1))
