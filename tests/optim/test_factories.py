"""AdaFisher made by the factories of other libraries, which call an optimizer with parameters alone."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from trainer._private import timm_registry
from trainer.optim import AdaFisher
from trainer.optim.factories import (
    AdaFisherOfParameters,
    register_with_pytorch_optimizer,
    register_with_timm,
)


@pytest.fixture
def timm() -> Iterator[Any]:
    timm = pytest.importorskip("timm")
    register_with_timm()
    yield timm
    del timm_registry()._optimizers["adafisher"]


@pytest.fixture
def pytorch_optimizer() -> Iterator[Any]:
    library = pytest.importorskip("pytorch_optimizer")
    register_with_pytorch_optimizer()
    yield library
    del library.optimizer.OPTIMIZERS["adafisher"]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))


def trained(model: nn.Module, optimizer: Optimizer) -> list[torch.Tensor]:
    for seed in range(12):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        model(torch.randn(6, 4)).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def by_hand(lr: float, decay: float) -> list[torch.Tensor]:
    model = network()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": vectors, "weight_decay": 0.0}, {"params": matrices, "weight_decay": decay}]
    return trained(model, AdaFisher(model, groups, lr=lr))


def test_timm(timm: Any) -> None:
    model = network()
    optimizer = timm.optim.create_optimizer_v2(model, "adafisher", lr=0.02, weight_decay=0.1, layers_of=model)
    assert isinstance(optimizer, AdaFisher)
    torch.testing.assert_close(trained(model, optimizer), by_hand(0.02, 0.1), rtol=0, atol=0)
    assert {row.source for row in optimizer.coverage()} == {"Linear", "LayerNorm"}
    with pytest.raises(TypeError, match="add the option layers_of=model"):
        timm.optim.create_optimizer_v2(model, "adafisher")


def test_timm_wraps_it(timm: Any) -> None:
    model = network()
    optimizer = timm.optim.create_optimizer_v2(model, "lookahead_adafisher", layers_of=model, layer_decay=0.5)
    assert {row.source for row in optimizer._base_optimizer.coverage()} == {"Linear", "LayerNorm"}
    assert all(p.isfinite().all() for p in trained(model, optimizer))


def test_pytorch_optimizer(pytorch_optimizer: Any) -> None:
    assert pytorch_optimizer.load_optimizer("AdaFisher") is AdaFisherOfParameters
    model = network()
    optimizer = pytorch_optimizer.create_optimizer(
        model, "adafisher", lr=0.02, weight_decay=0.1, wd_ban_list=["bias", "LayerNorm"], layers_of=model
    )
    torch.testing.assert_close(trained(model, optimizer), by_hand(0.02, 0.1), rtol=0, atol=0)


def test_it_is_copied_as_any_other() -> None:
    model = network()
    optimizer = AdaFisherOfParameters(model.parameters(), layers_of=model)
    trained(model, optimizer)
    twin, copied = copy.deepcopy((model, optimizer))
    assert type(copied) is AdaFisherOfParameters
    torch.testing.assert_close(trained(twin, copied), trained(model, optimizer), rtol=0, atol=0)
