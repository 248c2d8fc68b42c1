"""Full Kronecker factors against closed forms, explicit rows, the optimizer's diagonals and curvlinops."""

import pytest
import torch
from torch import nn

from trainer.analyze.factors import diagonal_energy, full_factors
from trainer.optim.adafisher.layers import layer_of
from trainer.optim.adafisher.rules import RULES
from trainer.optim.kronecker.rows import second_moment

SAMPLES, INSIDE, OUT = 6, 4, 3


def mean_squares(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Half the squared error of each sample, averaged over the samples."""
    return (output - target).square().flatten(1).sum(1).mean() / 2


def white(rows: int, columns: int) -> torch.Tensor:
    """Rows of mean zero whose second moment is the identity."""
    basis, _ = torch.linalg.qr(
        torch.randn(rows, columns + 1, dtype=torch.float64).index_fill(1, torch.tensor(0), 1.0)
    )
    return basis[:, 1:] * rows**0.5


def test_white_inputs_and_white_errors_have_identity_factors() -> None:
    layer = nn.Linear(INSIDE, OUT).double()
    x, errors = white(12, INSIDE), white(12, OUT)
    target = layer(x).detach() - errors

    found = full_factors({"layer": layer}, lambda: mean_squares(layer(x), target).backward())
    A, G = found["layer"]
    torch.testing.assert_close(A, torch.eye(INSIDE + 1, dtype=torch.float64))
    torch.testing.assert_close(G, torch.eye(OUT, dtype=torch.float64))
    assert diagonal_energy(A) == pytest.approx(1)


def test_two_layers_of_known_factors() -> None:
    """x ~ rows of known covariance; the second layer's input is W x, the first one's gradient Vᵀ s."""
    first, second = nn.Linear(INSIDE, 5, bias=False).double(), nn.Linear(5, OUT, bias=False).double()
    root = torch.randn(INSIDE, INSIDE, dtype=torch.float64)
    x, errors = white(12, INSIDE) @ root.T, white(12, OUT) * 0.5
    target = second(first(x)).detach() - errors

    model = nn.Sequential(first, second)
    found = full_factors(
        {"first": first, "second": second}, lambda: mean_squares(model(x), target).backward()
    )
    W, V = first.weight.detach(), second.weight.detach()
    torch.testing.assert_close(found["first"].A, root @ root.T)
    torch.testing.assert_close(found["first"].G, V.T @ V / 4)
    torch.testing.assert_close(found["second"].A, W @ root @ root.T @ W.T)
    torch.testing.assert_close(found["second"].G, torch.eye(OUT, dtype=torch.float64) / 4)


CONVOLUTIONS = {
    "plain": nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)),
    "dilated": nn.Conv2d(2, 3, 3, dilation=(2, 1), padding=2, bias=False),
    "circular": nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
    "grouped": nn.Conv2d(4, 6, 3, padding=1, groups=2),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("entries", [1, 2**24], ids=["sample by sample", "at once"])
def test_convolutions(name: str, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.optim.kronecker.rows.ENTRIES_AT_A_TIME", entries)
    layer = CONVOLUTIONS[name].double()
    x = torch.randn(SAMPLES, layer.in_channels, 6, 5, dtype=torch.float64)
    target = torch.randn_like(layer(x))
    A, G = full_factors({"layer": layer}, lambda: mean_squares(layer(x), target).backward())["layer"]

    # a row of patches is what the weight's gradient is made of: read it off one output position at a time
    groups, out = layer.groups, layer.out_channels // layer.groups
    rows = []
    output = layer(x)
    for group in range(groups):
        for value in output[:, group * out].flatten():
            parameters = [p for p in (layer.weight, layer.bias) if p is not None]
            gradients = torch.autograd.grad(value, parameters, retain_graph=True)
            rows.append(torch.cat([gradient[group * out].reshape(-1) for gradient in gradients]))
    torch.testing.assert_close(A, second_moment(torch.stack(rows)))
    errors = (output - target).detach().movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(G, second_moment(errors))

    described = layer_of(layer, RULES["paper"].layers)
    torch.testing.assert_close(A.diagonal(), described.H(x, output.shape))
    torch.testing.assert_close(G.diagonal(), described.S((output - target).detach()))


NORMS = {
    "batch": (nn.BatchNorm2d(4), (SAMPLES, 4, 3, 5)),
    "batch of vectors": (nn.BatchNorm1d(4), (SAMPLES, 4)),
    "group": (nn.GroupNorm(2, 4), (SAMPLES, 4, 3, 5)),
    "layer": (nn.LayerNorm((4, 2)), (SAMPLES, 3, 4, 2)),
    "root mean square": (nn.RMSNorm(4), (SAMPLES, 3, 4)),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    """x̂ is what the scale multiplies: the output, where the scale is 1 and the shift 0."""
    layer, shape = NORMS[name]
    layer = layer.double()
    x = torch.randn(shape, dtype=torch.float64) * 2 + 1
    output = layer(x)
    target = torch.randn_like(output)
    A, G = full_factors({"layer": layer}, lambda: mean_squares(layer(x), target).backward())["layer"]
    channels_last = (lambda t: t.movedim(1, -1)) if "batch" in name or name == "group" else (lambda t: t)
    rows, errors = (
        channels_last(t.detach()).reshape(-1, layer.weight.numel()) for t in (output, output - target)
    )
    torch.testing.assert_close(A, rows.T @ rows / len(rows))
    torch.testing.assert_close(G, errors.T @ errors / len(errors))

    described = layer_of(layer)
    torch.testing.assert_close(A.diagonal(), described.H(x, output.shape).flatten())
    torch.testing.assert_close(G.diagonal(), described.S((output - target).detach()).flatten())


def test_several_backwards_are_one_mean() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(INSIDE, OUT)).double()
    layers = {"1": model[1]}
    x = torch.randn(SAMPLES, INSIDE, dtype=torch.float64)
    target = torch.randn(SAMPLES, OUT, dtype=torch.float64)

    def in_parts() -> None:
        for part, wanted in zip(x.split(2), target.split(2), strict=True):
            (mean_squares(model(part), wanted) / 3).backward()

    whole = full_factors(layers, lambda: mean_squares(model(x), target).backward())
    for got, wanted in zip(full_factors(layers, in_parts)["1"], whole["1"], strict=True):
        torch.testing.assert_close(got, wanted)


def test_a_frozen_network_has_none_and_hooks_are_gone() -> None:
    layer = nn.Linear(INSIDE, OUT).requires_grad_(False)
    assert full_factors({"layer": layer}, lambda: layer(torch.randn(2, INSIDE)).sum()) == {}
    assert not layer._forward_hooks


def test_against_curvlinops() -> None:
    """K-FAC's full factors (empirical Fisher, expand), up to how each counts rows."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, OUT)).double()
    x = torch.randn(SAMPLES, 1, 6, 6, dtype=torch.float64)
    y = torch.randint(OUT, (SAMPLES,))
    loss = nn.CrossEntropyLoss()
    found = full_factors({"0": model[0], "3": model[3]}, lambda: loss(model(x), y).backward())

    operator = pytest.importorskip("curvlinops").KFACLinearOperator(
        model,
        loss,
        list(model.parameters()),
        [(x, y)],
        fisher_type="empirical",
        kfac_approx="expand",
        separate_weight_and_bias=False,
    )
    operator.compute_kronecker_factors()
    for name, factors in found.items():
        for ours, theirs in zip(
            factors, (operator._input_covariances[name], operator._gradient_covariances[name]), strict=True
        ):
            torch.testing.assert_close(ours / ours.trace(), theirs / theirs.trace())
