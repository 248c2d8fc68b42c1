"""H and S of every layer type against brute force: explicit rows, per-sample gradients, curvlinops."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from trainer.optim.adafisher.layers import LAYERS, layer_of
from trainer.optim.adafisher.optimizer import AdaFisher

SAMPLES = 3


def captured(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], rule: str = "paper") -> AdaFisher:
    """One step in float64, so that the state holds the first refresh's H and S."""
    optimizer = AdaFisher(model, rule=rule, lr=0.0, update_interval=1)
    loss(model(x)).backward()
    optimizer.step()
    return optimizer


def mean_loss(target: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda y: ((y - target) ** 3).flatten(1).sum(1).mean()


def per_sample_gradient(y: Tensor, target: Tensor) -> Tensor:
    return 3 * (y - target) ** 2


def explicit_rows(module: Any, x: Tensor) -> list[Tensor]:
    """The rows that a weight multiplies, a group at a time, read off the Jacobian of the output: [rows, columns]."""
    weight = module.weight.detach()
    jacobian = jacrev(lambda w: functional_call(module, {"weight": w}, (x,)))(weight)
    jacobian = jacobian.flatten(2, -weight.dim() - 1).movedim(2, 1).flatten(0, 1)  # [rows, out, *weight]
    groups, out = module.groups, module.out_channels // module.groups
    rows = []
    for group in range(groups):
        row = jacobian[:, group * out]
        if module.transposed:
            inside = module.in_channels // groups
            row = row[:, group * inside : (group + 1) * inside, 0]
        else:
            row = row[:, group * out]
        rows.append(row.flatten(1))
    return rows


CONVOLUTIONS = {
    "conv1d": (nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 7)),
    "conv1d_same": (nn.Conv1d(2, 3, 4, padding="same", dilation=2), (2, 9)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (3, 6, 5)),
    "conv2d_dilated": (nn.Conv2d(2, 3, 3, dilation=(2, 1), padding=2, bias=False), (2, 6, 7)),
    "conv2d_reflect": (nn.Conv2d(2, 3, 3, padding=2, padding_mode="reflect"), (2, 5, 5)),
    "conv2d_circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
    "conv2d_grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 5)),
    "conv2d_depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 5, 5)),
    "conv3d": (nn.Conv3d(2, 3, (2, 1, 3), padding=(0, 0, 1)), (2, 3, 3, 4)),
    "transposed1d": (nn.ConvTranspose1d(3, 2, 3, stride=2, padding=1), (3, 4)),
    "transposed2d": (nn.ConvTranspose2d(2, 3, (3, 2), stride=(2, 3), padding=1, output_padding=1), (2, 3, 4)),
    "transposed2d_grouped": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, dilation=2, bias=False),
        (4, 3, 3),
    ),
    "transposed3d": (nn.ConvTranspose3d(2, 2, 2, stride=2), (2, 2, 2, 2)),
}


@pytest.mark.parametrize("rule", ["paper", "calibrated"])
@pytest.mark.parametrize(
    ("name", "channels_last"),
    [(name, False) for name in CONVOLUTIONS]
    + [(name, True) for name, (_, shape) in CONVOLUTIONS.items() if len(shape) == 3],
)
def test_convolutions(name: str, channels_last: bool, rule: str) -> None:
    torch.manual_seed(0)
    module, shape = CONVOLUTIONS[name]
    module = module.double()
    x = torch.randn(SAMPLES, *shape, dtype=torch.float64)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    y = module(x).detach()
    target = torch.randn_like(y)
    optimizer = captured(module, x, mean_loss(target), rule)

    H = torch.stack([rows.square().mean(0) for rows in explicit_rows(module, x)])
    if module.bias is not None:
        H = torch.cat([H, torch.ones(len(H), 1)], 1)
    if rule == "paper" or module.groups == 1:
        H = H.mean(0)
    S = per_sample_gradient(y, target).square().transpose(0, 1).flatten(1).mean(1)
    for param in module.parameters():
        torch.testing.assert_close(optimizer.state[param]["H"], H)
        torch.testing.assert_close(optimizer.state[param]["S"], S)


@pytest.mark.parametrize("shape", [(SAMPLES, 5), (SAMPLES, 4, 5), (SAMPLES, 2, 3, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    module = nn.Linear(5, 4, bias=bias).double()
    x = torch.randn(shape, dtype=torch.float64)
    y = module(x).detach()
    target = torch.randn_like(y)
    state = captured(module, x, mean_loss(target)).state[module.weight]

    H = x.flatten(0, -2).square().mean(0)
    torch.testing.assert_close(state["H"], torch.cat([H, torch.ones(1)]) if bias else H)
    torch.testing.assert_close(state["S"], per_sample_gradient(y, target).square().flatten(0, -2).mean(0))


NORMS = {
    "batch1d": (nn.BatchNorm1d(4), (4,)),
    "batch1d_length": (nn.BatchNorm1d(4), (4, 3)),
    "batch2d": (nn.BatchNorm2d(4), (4, 3, 2)),
    "batch3d": (nn.BatchNorm3d(2), (2, 3, 2, 2)),
    "sync": (nn.SyncBatchNorm(4), (4, 3)),
    "layer": (nn.LayerNorm(5), (4, 5)),
    "layer2d": (nn.LayerNorm((3, 5)), (4, 3, 5)),
    "rms": (nn.RMSNorm(5, eps=1e-5), (4, 5)),
    "group": (nn.GroupNorm(2, 4), (4, 3, 3)),
    "instance1d": (nn.InstanceNorm1d(4, affine=True), (4, 6)),
    "instance2d": (nn.InstanceNorm2d(4, affine=True), (4, 3, 3)),
    "instance3d": (nn.InstanceNorm3d(2, affine=True), (2, 3, 2, 2)),
}


@pytest.mark.parametrize("rule", ["paper", "calibrated"])
@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str, rule: str) -> None:
    torch.manual_seed(0)
    module, shape = NORMS[name]
    module = module.double()
    x = 2 * torch.randn(SAMPLES, *shape, dtype=torch.float64) + 1
    y = module(x).detach()
    target = torch.randn_like(y)
    optimizer = captured(module, x, mean_loss(target), rule)

    # what the scale multiplies: the output with scale one and shift zero
    x_hat = functional_call(
        module, {n: torch.full_like(p, n == "weight") for n, p in module.named_parameters()}, (x,)
    )
    last = isinstance(module, nn.LayerNorm | nn.RMSNorm)
    axes = tuple(a for a in range(x.dim()) if (a < x.dim() - module.weight.dim() if last else a != 1))
    S = per_sample_gradient(y, target).square().mean(axes).flatten()
    torch.testing.assert_close(
        optimizer.state[module.weight]["H"], x_hat.square().mean(axes).flatten().detach()
    )
    torch.testing.assert_close(optimizer.state[module.weight]["S"], S)
    if getattr(module, "bias", None) is not None:
        torch.testing.assert_close(optimizer.state[module.bias]["H"], torch.ones(1, dtype=torch.float64))
        torch.testing.assert_close(optimizer.state[module.bias]["S"], S)


def test_embedding() -> None:
    torch.manual_seed(0)
    module = nn.Embedding(6, 3).double()
    tokens = torch.randint(6, (SAMPLES, 4))
    y = module(tokens).detach()
    target = torch.randn_like(y)
    state = captured(module, tokens, mean_loss(target)).state[module.weight]

    one_hot = nn.functional.one_hot(tokens, 6).double().flatten(0, 1)
    torch.testing.assert_close(state["H"], (one_hot.T @ one_hot / len(one_hot)).diag())
    torch.testing.assert_close(state["S"], per_sample_gradient(y, target).square().flatten(0, 1).mean(0))


def test_every_layer_type_is_tested() -> None:
    tested = {type(module) for module, _ in [*CONVOLUTIONS.values(), *NORMS.values()]} | {
        nn.Linear,
        nn.Embedding,
    }
    known = {
        kind for kind in LAYERS if not isinstance(kind, str)
    }  # names are tested in test_library_layers.py
    assert tested == {kind for kind in known if kind.__module__.startswith("torch.")}  # but for plugins


def test_one_row_gives_the_exact_fisher() -> None:
    """For a single row, S ⊗ H is the squared per-sample gradient; for more it factorises their mean."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, target = torch.randn(1, 4, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    optimizer = captured(model, x, mean_loss(target))

    def sample_loss(params: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        return mean_loss(target[None])(functional_call(model, params, (x[None],)))

    params = {name: p.detach() for name, p in model.named_parameters()}
    fisher = {
        n: g.square().mean(0) for n, g in vmap(grad(sample_loss), (None, 0, 0))(params, x, target).items()
    }
    for layer in ("0", "2"):
        state = optimizer.state[model.get_submodule(layer).weight]
        product = torch.outer(state["S"], state["H"])
        torch.testing.assert_close(product[:, :-1], fisher[f"{layer}.weight"])
        torch.testing.assert_close(product[:, -1], fisher[f"{layer}.bias"])


def test_per_sample_gradients_give_S() -> None:
    """A bias's per-sample gradients are the rows s, when there is a row a sample."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, target = torch.randn(8, 4, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    optimizer = captured(model, x, mean_loss(target))

    def sample_loss(params: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        return mean_loss(target[None])(functional_call(model, params, (x[None],)))

    params = {name: p.detach() for name, p in model.named_parameters()}
    gradients = vmap(grad(sample_loss), (None, 0, 0))(params, x, target)
    for layer in ("0", "2"):
        S = optimizer.state[model.get_submodule(layer).bias]["S"]
        torch.testing.assert_close(S, gradients[f"{layer}.bias"].square().mean(0))


def test_against_curvlinops() -> None:
    """The diagonals of K-FAC's full factors (empirical Fisher, expand), up to how each counts rows."""
    kfac = pytest.importorskip("curvlinops").KFACLinearOperator
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2), nn.Flatten(), nn.Linear(16, 3)
    ).double()
    x, y = torch.randn(5, 2, 6, 6, dtype=torch.float64), torch.randint(3, (5,))
    optimizer = captured(model, x, lambda out: nn.functional.cross_entropy(out, y))
    operator = kfac(
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(x, y)],
        fisher_type="empirical",
        kfac_approx="expand",
        separate_weight_and_bias=False,
    )
    operator.compute_kronecker_factors()
    for layer in ("0", "2", "4"):
        state = optimizer.state[model.get_submodule(layer).weight]
        for key, covariances in ("H", operator._input_covariances), ("S", operator._gradient_covariances):
            diagonal = covariances[layer].diag()
            torch.testing.assert_close(state[key] / state[key].mean(), diagonal / diagonal.mean())


def test_a_subclass_with_its_own_forward_is_not_known() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert layer_of(Scaled(2, 2)) is None
    assert layer_of(nn.Linear(2, 2)) is not None
