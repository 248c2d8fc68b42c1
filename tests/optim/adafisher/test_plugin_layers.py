"""A layer type that is made known from outside of the package."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from trainer.optim.adafisher import AdaFisher, Layer, View, register_layer
from trainer.optim.adafisher.layers import LAYERS


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    known = dict(LAYERS)
    yield
    LAYERS.clear()
    LAYERS.update(known)


def bilinear(module: nn.Bilinear) -> Layer:
    """The example of `register_layer`, with a bias."""
    out, left, right = module.weight.shape

    def H(x1: Tensor, x2: Tensor, output_shape: torch.Size) -> Tensor:
        rows = (x1.unsqueeze(-1) * x2.unsqueeze(-2)).flatten(0, -3)
        return torch.cat([rows.square().mean(0).flatten(), rows.new_ones(1)])

    def S(s: Tensor) -> Tensor:
        return s.flatten(0, -2).square().mean(0)

    size, bias = left * right + 1, slice(left * right, left * right + 1)
    weight_view = View(
        (out, left, right), (out, 1, 1), (1, left, right), (out,), (size,), slice(0, left * right)
    )
    return Layer(
        "Bilinear", H, S, {"weight": weight_view, "bias": View((out,), (out,), (1,), (out,), (size,), bias)}
    )


def test_a_role_that_makes_another_matrix_of_it_is_refused() -> None:
    """Three axes that no convolution has are a stack of matrices, and here they are one."""
    register_layer(nn.Bilinear)(bilinear)
    expected = (
        r"^Invalid roles\['\*weight'\]: 'whole', must be 'rooted' or 'calibrated' for weight: "
        "its H and S are of a matrix of 4 rows, not of 20$"
    )
    with pytest.raises(ValueError, match=expected):
        AdaFisher(nn.Bilinear(5, 6, 4), roles={"bias": "calibrated", "*weight": "whole"})
    AdaFisher(nn.Bilinear(5, 6, 4), roles={"*": "whole", "*weight": "rooted"})


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.product = nn.Linear(3, 4), nn.Linear(3, 2), nn.Bilinear(4, 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(self.left(x), self.right(x))


def test_a_registered_layer_has_factors_and_trains() -> None:
    register_layer(nn.Bilinear)(bilinear)
    torch.manual_seed(0)
    model = Product().double()
    x, target = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)

    def loss(params: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        return (functional_call(model, params, (x[None],)) - target[None]).square().sum(1).mean()

    params = {name: p.detach() for name, p in model.named_parameters()}
    gradients = [grad(loss)(params, *sample)["product.bias"] for sample in zip(x, target, strict=True)]
    inputs = torch.einsum("ni,nj->nij", model.left(x), model.right(x)).detach()

    optimizer = AdaFisher(model)
    before = model.product.weight.detach().clone()
    (model(x) - target).square().sum(1).mean().backward()
    optimizer.step()
    state = optimizer.state[model.product.weight]
    torch.testing.assert_close(state["S"], torch.stack(gradients).square().mean(0))
    torch.testing.assert_close(state["H"][:-1].view(4, 2), inputs.square().mean(0))
    assert dict(row[:2] for row in optimizer.coverage())["product.weight"] == "Bilinear"
    F = torch.einsum(
        "o,ij->oij", state["S"] / state["S"].mean(), state["H"][:-1].view(4, 2) / state["H"].mean()
    )
    torch.testing.assert_close(optimizer.preconditioner(model.product.weight), F + 0.01)
    assert not torch.equal(before, model.product.weight)


def test_without_it_the_gradient_is_the_source() -> None:
    torch.manual_seed(0)
    model = Product()
    optimizer = AdaFisher(model)
    model(torch.randn(7, 3)).square().mean().backward()
    optimizer.step()
    assert dict(row[:2] for row in optimizer.coverage())["product.weight"] == "gradient"


def test_a_registered_subclass_is_not_its_base() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(2 * x)

    @register_layer(Scaled)
    def scaled(module: Scaled) -> Layer:
        layer = LAYERS[nn.Linear](module)
        return Layer("Scaled", lambda x, output: layer.H(2 * x, output), layer.S, layer.views)

    torch.manual_seed(0)
    model = Scaled(4, 3)
    optimizer = AdaFisher(model)
    x = torch.randn(8, 4)
    model(x).square().mean().backward()
    optimizer.step()
    torch.testing.assert_close(optimizer.state[model.weight]["H"][:-1], 4 * x.square().mean(0))


def test_a_layer_is_registered_by_its_name() -> None:
    class Named(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    def mine(module: Named) -> Layer:
        return replace(LAYERS[nn.Linear](module), kind="Mine")

    for describe, names, source in (
        (LAYERS[nn.Linear], "tests.Nam*", "Linear"),
        (mine, "tests.Named", "Mine"),
        (LAYERS[nn.Linear], "tests.Nam*", "Linear"),  # the last one counts
    ):
        register_layer(names)(describe)
        assert [row.source for row in AdaFisher(Named(2, 2)).coverage()] == [source, source]
