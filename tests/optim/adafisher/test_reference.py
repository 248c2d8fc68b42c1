"""AdaFisher takes the steps of its reference implementation."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainer.models.gpt import GPT
from trainer.optim.adafisher import AdaFisher
from trainer.optim.adafisher.reference import AdaFisherReference, OrthogonalReference

STEPS = 30
Batch = tuple[Tensor, Tensor]


def images(generator: torch.Generator) -> Batch:
    x = torch.randn(16, 1, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (16,), generator=generator)


def text(generator: torch.Generator) -> Batch:
    tokens = torch.randint(17, (8, 7), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def convnet(bias: bool = False) -> nn.Module:
    """With a convolution in groups before a batch norm, and three norms."""
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, groups=2, bias=bias), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
    )


def gpt() -> nn.Module:
    return GPT(layers=2, width=12, heads=2, vocab_size=17, context_length=6)


REFERENCES = {"calibrated": AdaFisherReference, "orthogonal": OrthogonalReference}


def train_both(
    model: nn.Module, batch: Callable[[torch.Generator], Batch], rule: Any = "calibrated", **options: Any
) -> tuple[nn.Module, nn.Module]:
    """The same steps with AdaFisher and with its reference; returns both models."""
    twin = copy.deepcopy(model)
    fast = AdaFisher(model, rule=rule, update_interval=4, **options)
    plain = REFERENCES[rule](twin, update_interval=4)
    for step in range(STEPS):
        x, y = batch(torch.Generator().manual_seed(step))
        for net, optimizer in ((model, fast), (twin, plain)):
            optimizer.zero_grad()
            cross_entropy(net(x).flatten(0, -2), y.flatten()).backward()
            optimizer.step()
    return model, twin


def wide() -> nn.Module:
    """With more rows than a block has, which no block divides."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 261), nn.Tanh(), nn.Linear(261, 3))


@pytest.mark.parametrize(
    ("make", "batch", "rule", "fused"),
    [
        (convnet, images, "calibrated", None),
        (gpt, text, "calibrated", None),
        (convnet, images, "calibrated", "compile"),
        (gpt, text, "calibrated", "compile"),
        (convnet, images, "orthogonal", None),
        (gpt, text, "orthogonal", None),
        (wide, images, "orthogonal", None),
    ],
)
def test_takes_the_steps_of_the_reference(
    make: Callable[[], nn.Module], batch: Callable[[torch.Generator], Batch], rule: str, fused: Any
) -> None:
    torch.manual_seed(0)
    start = make().double()
    model, twin = train_both(copy.deepcopy(start), batch, rule, fused=fused)
    for ours, reference, before in zip(
        model.parameters(), twin.parameters(), start.parameters(), strict=True
    ):
        assert not torch.allclose(reference, before, rtol=0, atol=5e-3)
        torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_bias_before_batch_norm_stays(dtype: torch.dtype) -> None:
    """Its gradient is rounding noise, which the two compute differently."""
    torch.manual_seed(0)
    model = convnet(bias=True).to(dtype)
    before = model[3].bias.detach().clone()
    if dtype == torch.float64:
        model, twin = train_both(model, images)
        for ours, reference in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, reference, rtol=0, atol=1e-12)
    else:
        model, _ = train_both(model, lambda g: (images(g)[0].float(), images(g)[1]))
    decayed = before * (1 - 1e-2 * 1e-2) ** STEPS
    full_length = 1e-2 * 0.2 * STEPS**0.5  # of steps in random directions
    torch.testing.assert_close(model[3].bias.detach(), decayed, rtol=0, atol=full_length / 20)


def test_the_reference_names_a_layer_that_it_does_not_know() -> None:
    model = nn.Bilinear(2, 3, 4)
    AdaFisherReference(model)
    with pytest.raises(TypeError, match="does not know Bilinear"):
        model(torch.randn(5, 2), torch.randn(5, 3))
