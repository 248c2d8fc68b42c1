"""Every trainable parameter of real architectures gets curvature of its own layer and moves in one step."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from trainer.models.gpt import GPT
from trainer.optim import AdaFisher
from trainer.optim.adafisher.layers import layer_of

ATTENTION = ("out_proj.weight", "out_proj.bias")  # of nn.MultiheadAttention


def check(
    model: nn.Module, *inputs: Tensor, still: tuple[str, ...] = (), functions: tuple[str, ...] = ()
) -> dict[str, str]:
    """One step; every parameter but ``still`` moved, its H and S fit it. Returns the source of each.

    ``functions``: ends of the names of parameters whose layers are never called.
    """
    optimizer = AdaFisher(model, lr=1e-2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    out = model(*inputs)
    out = out if isinstance(out, Tensor) else out[0]
    (out * torch.linspace(0.1, 1.0, out.numel()).view_as(out)).sum().backward()
    optimizer.step()
    unmoved = {n for n, p in model.named_parameters() if p.requires_grad and torch.equal(before[n], p)}
    # a zero gradient moves nothing but by weight decay, which a parameter that is zero does not feel
    assert unmoved - set(still) <= {
        n for n, p in model.named_parameters() if p.grad is not None and not p.grad.any()
    }
    assert all(p.isfinite().all() for p in model.parameters())
    rows = optimizer.coverage()
    assert [row.parameter for row in rows] == [n for n, p in model.named_parameters() if p.requires_grad]
    for row in rows:
        param = model.get_parameter(row.parameter)
        owners = [m for m in model.modules() if any(p is param for p in m._parameters.values())]
        if row.source == "gradient":
            assert all(layer_of(m) is None for m in owners) or row.parameter.endswith(functions)
        else:
            assert row.source.split(" + ") == [layer_of(m).kind for m in owners]  # type: ignore[union-attr]
        entries = torch.Size(row.S[0]).numel() * torch.Size(row.H[0]).numel()
        assert entries >= param.numel() or row.S[0] == (param.numel(),)
    return {row.parameter: row.source for row in rows}


TORCHVISION: dict[str, tuple[str, ...]] = {  # layers whose weights are used without calling them
    "resnet50": (),
    "densenet121": (),
    "mobilenet_v3_large": (),
    "efficientnet_b0": (),
    "convnext_tiny": (),
    "vit_b_16": ATTENTION,
    "swin_t": ("attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias"),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    torch.manual_seed(0)
    options = {"image_size": 32} if name == "vit_b_16" else {}
    size = options.get("image_size", 64)
    model = torchvision.models.get_model(name, num_classes=7, **options)
    sources = check(model, torch.randn(2, 3, size, size), functions=TORCHVISION[name])
    assert sum(source != "gradient" for source in sources.values()) > len(sources) / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "linears"), [("vit_tiny_patch16_224", 49), ("focalnet_tiny_srf", 1), ("mixer_s32_224", 33)]
)
def test_timm(name: str, linears: int) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    sources = check(timm.create_model(name, num_classes=7), torch.randn(2, 3, 224, 224))
    assert list(sources.values()).count("Linear") == 2 * linears, "weights and biases"


def test_gpt_with_a_tied_head() -> None:
    torch.manual_seed(0)
    model = GPT(layers=2, width=16, heads=2, vocab_size=11, context_length=8)
    sources = check(model, torch.randint(11, (3, 8)))
    assert sources["tokens.weight"] == "Embedding + Linear"
    assert "gradient" not in sources.values()


def test_transformer() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
    sources = check(model, torch.randn(3, 5, 16), torch.randn(3, 4, 16), functions=ATTENTION)
    gradient = {name for name, source in sources.items() if source == "gradient"}
    assert gradient
    assert all("attn" in name for name in gradient)


class Odd(nn.Module):
    """A layer never called, one called twice, one called as a function, a bare parameter, in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.unused = nn.Linear(6, 6)
        self.functional = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.table = nn.Parameter(torch.randn(3, 6, 2))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.relu(self.first(input=x))
        x = self.relu(nn.functional.linear(x, self.functional.weight, self.functional.bias))
        return self.head(x * self.scale + self.table.mean((0, 2)))


UNUSED = ("unused.weight", "unused.bias")


def test_odd_model() -> None:
    torch.manual_seed(0)
    sources = check(
        Odd(), torch.randn(5, 6), still=UNUSED, functions=(*UNUSED, "functional.weight", "functional.bias")
    )
    assert sources["first.weight"] == "Linear"
    assert sources["functional.weight"] == sources["scale"] == sources["table"] == "gradient"


def test_frozen_backbone_and_thawed_later() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3)
    )
    model[0].requires_grad_(False)
    frozen = model[0].weight.clone()
    sources = check(model, torch.randn(4, 1, 6, 6))
    assert "0.weight" not in sources
    assert torch.equal(frozen, model[0].weight)

    optimizer = AdaFisher(model, update_interval=1)
    for thawed in (False, True):
        model[0].requires_grad_(thawed)
        optimizer.zero_grad()
        model(torch.randn(4, 1, 6, 6)).square().mean().backward()
        optimizer.step()
    assert not torch.equal(frozen, model[0].weight)


def lazy() -> nn.Module:
    model = nn.Sequential(nn.LazyLinear(5), nn.ReLU(inplace=True), nn.LazyLinear(3))
    model(torch.randn(2, 4))
    return model


def normalised() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 3))


@pytest.mark.parametrize(("make", "source"), [(lazy, "Linear"), (normalised, "gradient")])
def test_special_layers(make: Callable[[], nn.Module], source: str) -> None:
    torch.manual_seed(0)
    sources = check(make(), torch.randn(6, 4))
    weight = next(name for name in sources if name.startswith("0.") and "bias" not in name)
    assert sources[weight] == source
