"""The networks for CIFAR-sized images against torchvision's, timm's and torch's own layers with the same weights."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.swin_transformer import shifted_window_attention
from torchvision.ops import SqueezeExcitation, StochasticDepth

from trainer.errors import ConfigError
from trainer.models import MODELS, mobilenetv3
from trainer.models.swin import WindowAttention
from trainer.optim import AdaFisher

CIFAR = {"num_classes": 10, "in_channels": 3}


def build(name, **options):
    torch.manual_seed(0)
    return MODELS.build(MODELS.check({"name": name, **CIFAR, **options}))


def randomise(model):
    """Norms and biases that are not ones and zeros, which would hide where they are used."""
    for p in model.parameters():
        if p.dim() < 2:
            nn.init.uniform_(p, 0.5, 1.5)
    return model


def copy_in_order(source, target):
    """Gives a model the tensors of another one that has the same in the same order, up to axes of length one."""
    theirs = target.state_dict()
    for (name, value), own in zip(theirs.items(), source.state_dict().values(), strict=True):
        assert value.numel() == own.numel(), name
        value.copy_(own.view_as(value))


# Swin ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 2])
def test_attention_in_windows_is_torchvisions(shift):
    layer = WindowAttention(64, 4, shift, (8, 12))
    x = torch.randn(2, 8, 12, 64)
    index = models.swin_transformer.ShiftedWindowAttention(64, [4, 4], [0, 0], 2).relative_position_index
    bias = layer.table.flip(0, 1).flatten()[index].view(16, 16)  # theirs counts from key to query
    expected = shifted_window_attention(
        x, layer.attention.qkv.weight, layer.attention.out.weight, bias, [4, 4], 2, [shift, shift],
        proj_bias=layer.attention.out.bias,
    )  # fmt: skip
    torch.testing.assert_close(layer(x), expected)


def test_the_only_window_of_an_image_shifts_too():
    """Rolled by two, its quarters come from four corners of the image and do not see each other."""
    layer = WindowAttention(32, 4, 2, (4, 4))
    x = torch.randn(1, 4, 4, 32)
    changed = x.clone()
    changed[:, :2, :2] += 1
    same = torch.isclose(layer(x), layer(changed), atol=1e-6).all(-1)[0]
    assert same.tolist() == [[False, False, True, True]] * 2 + [[True] * 4] * 2


def test_swin_merges_squares_of_tokens():
    model = build("swin_tiny_cifar", image_size=32)
    merges = [m for m in model.stages if hasattr(m, "side")]
    assert [(m.side, m.linear.in_features, m.linear.out_features) for m in merges] == [
        (2, 12, 96), (2, 384, 192), (2, 768, 384), (1, 384, 768),
    ]  # fmt: skip
    images = torch.randn(2, 3, 32, 32)
    patches = F.unfold(images, 2, stride=2).view(2, 3, 4, 16, 16).permute(0, 3, 4, 2, 1).flatten(3)
    torch.testing.assert_close(
        merges[0](images.permute(0, 2, 3, 1)),
        F.linear(patches, merges[0].linear.weight, merges[0].linear.bias),
    )
    shifts = [m.attention.shift for m in model.stages if hasattr(m, "attention")]
    assert shifts == [0, 2] * 6


# FocalNet --------------------------------------------------------------------------------------------------------


def test_focalnet_is_timms_with_patches_of_two_pixels():
    focalnet = pytest.importorskip("timm.models.focalnet")
    ours = randomise(build("focalnet_tiny_cifar", image_size=32, width=16, depths=[1, 2, 1, 1])).eval()
    theirs = focalnet.FocalNet(
        num_classes=10, embed_dim=16, depths=(1, 2, 1, 1), focal_levels=(2,) * 4, focal_windows=(3,) * 4
    ).eval()  # fmt: skip
    theirs.stem.proj = nn.Conv2d(3, 16, 2, 2)
    for module in theirs.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5  # torch's
    copy_focal(ours, theirs)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images))


def copy_focal(ours, theirs):
    """Copies by names, since timm's modulation lists its layers in another order."""
    names = {
        r"^stem\.proj": "stages.0.convolution", r"^stem\.norm": "stages.0.norm", r"^norm|^head\.norm": "norm",
        r"^head\.fc": "head",
    }  # fmt: skip
    stages = [i for i, m in enumerate(ours.stages) if hasattr(m, "convolution")]
    parts = {
        "norm1": "modulation_norm", "modulation.f": "modulation.project", "modulation.h": "modulation.mix",
        "modulation.proj": "modulation.out", "modulation.focal_layers": "modulation.contexts",
        "norm2": "mlp_norm", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2",
    }  # fmt: skip
    own = ours.state_dict()
    used = set()
    for name, value in theirs.state_dict().items():
        if match := re.match(r"layers\.(\d)\.downsample\.(proj|norm)(.*)", name):
            place = f"stages.{stages[int(match[1])]}.{match[2].replace('proj', 'convolution')}{match[3]}"
        elif match := re.match(r"layers\.(\d)\.blocks\.(\d)\.(.*)", name):
            rest = match[3]
            part = next(p for p in sorted(parts, key=len, reverse=True) if rest.startswith(p + "."))
            place = f"stages.{stages[int(match[1])] + 1 + int(match[2])}.{parts[part]}{rest[len(part) :]}"
        else:
            pattern = next(p for p in names if re.match(p, name))
            place = re.sub(pattern, names[pattern], name)
        value.copy_(own[place].view_as(value))
        used.add(place)
    assert used == set(own)


def test_stochastic_depth_grows_from_block_to_block():
    model = build("focalnet_tiny_cifar", image_size=32)
    shares = [m.p for m in model.modules() if isinstance(m, StochasticDepth)]
    assert shares == pytest.approx([0.1 * i / 11 for i in range(12)])
    assert [m.p for m in build("cct2_cifar", image_size=32).modules() if isinstance(m, StochasticDepth)] == [
        0,
        0.1,
    ]


# MobileNetV3 ------------------------------------------------------------------------------------------------------


def test_mobilenetv3_is_torchvisions_but_for_strides_and_squeezes(weights_of, monkeypatch):
    theirs = weights_of(models.mobilenet_v3_large).eval()
    ours = build("mobilenetv3_cifar", pretrained=True).eval()
    monkeypatch.setattr(mobilenetv3.SqueezeExcitation, "forward", lambda self, x: x)
    monkeypatch.setattr(SqueezeExcitation, "forward", lambda self, x: x)
    theirs.features[0][0].stride = theirs.features[2].block[1][0].stride = (1, 1)
    copy_in_order(ours.stem, theirs.features[0])
    nn.init.zeros_(theirs.classifier[0].bias)
    for layer in (ours.head[0], ours.head[3]):
        nn.init.normal_(layer.weight, std=0.1)
    theirs.classifier[3] = ours.head[3]
    theirs.classifier[0].weight = ours.head[0].weight
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images))


def test_squeeze_and_excitation_comes_before_the_activation():
    block = build("mobilenetv3_cifar").eval().blocks[3]
    kinds = [type(m).__name__ for m in block.branch]
    assert kinds == ["Sequential", "ReLU", "Sequential", "SqueezeExcitation", "ReLU", "Sequential"]
    squeeze, x = block.branch[3], torch.randn(2, 72, 5, 5)
    first, second = (m.weight for m in squeeze.gate if isinstance(m, nn.Linear))
    assert first.shape == (18, 72)
    nn.init.normal_(first)
    nn.init.normal_(second)
    gate = ((x.mean((2, 3)) @ first.T).clamp(min=0) @ second.T / 6 + 0.5).clamp(0, 1)
    torch.testing.assert_close(squeeze(x), x * gate[:, :, None, None])


# CCT -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("released", [False, True])
def test_cct_with_torchs_attention(released):
    model = randomise(build("cct2_cifar", image_size=32, released=released)).eval()
    images = torch.randn(2, 3, 32, 32)
    x = images
    for convolution in (m for m in model.tokenizer if isinstance(m, nn.Conv2d)):
        stride, padding = (2, 3) if released else (1, 1)
        x = F.max_pool2d(F.conv2d(x, convolution.weight, None, stride, padding).relu(), 3, 2, 1)
    x = x.flatten(2).transpose(1, 2) + model.positions
    assert x.shape == (2, 81 if released else 64, 256 if released else 128)
    for block in model.blocks:
        attention = nn.MultiheadAttention(x.shape[-1], 2, batch_first=True)
        attention.in_proj_weight, attention.out_proj = block.attention.qkv.weight, block.attention.out
        nn.init.zeros_(attention.in_proj_bias)
        y = block.attention_norm(x)
        x = block.mlp_norm(x + attention(y, y, y)[0])
        x = x + block.mlp[2](F.gelu(block.mlp[0](x)))
    x = model.norm(x)
    share = model.pooling(x).exp() / model.pooling(x).exp().sum(1, keepdim=True)
    torch.testing.assert_close(model(images), model.head((share.transpose(1, 2) @ x)[:, 0]))


# What they have in common ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "options", "bare"),
    [
        ("mobilenetv3_cifar", 8, {"width": 0.5}, []),
        ("mobilenetv3_cifar", 8, {"width": 0.25, "dense": True}, []),
        ("swin_tiny_cifar", 16, {"width": 32, "window": 2}, ["table"]),
        ("focalnet_tiny_cifar", 16, {"width": 8}, []),
        ("focalnet_tiny_cifar", 16, {"width": 8, "dense": True}, []),
        ("cct2_cifar", 16, {}, ["positions"]),
        ("cct2_cifar", 16, {"released": True}, ["positions"]),
    ],
)
def test_adafisher_sees_the_rows_of_every_layer(name, size, options, bare):
    """All but parameters that belong to no layer have curvature of their own layer."""
    options = {**options, "image_size": size} if "image_size" in MODELS.get(name).options else options
    model = build(name, **options)
    optimizer = AdaFisher(model, lr=1e-3)
    F.cross_entropy(model(torch.randn(4, 3, size, size)), torch.arange(4)).backward()
    optimizer.step()
    fallback = {row.parameter.rpartition(".")[2] for row in optimizer.coverage() if row.source == "gradient"}
    assert fallback == set(bare)


# Pretrained weights ----------------------------------------------------------------------------------------------


@pytest.fixture
def weights_of(monkeypatch):
    """Stands in for the download: the state of a model of torchvision with random weights and statistics."""

    def install(architecture):
        model = randomise(architecture())
        for name, buffer in model.named_buffers():
            if name.endswith(("mean", "var")):
                nn.init.uniform_(buffer, 0.5, 1.5)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: state)
        return model

    return install


def test_a_resnet_starts_from_torchvisions_weights(weights_of):
    theirs = weights_of(models.resnet50).eval()
    ours = build("resnet50_cifar", pretrained=True).eval()
    x = torch.randn(2, 64, 8, 8)
    expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
    torch.testing.assert_close(ours.blocks(x), expected)
    assert ours.stem[0][0].weight.shape == (64, 3, 3, 3)


def test_a_densenet_starts_from_torchvisions_weights(weights_of):
    theirs = weights_of(models.densenet121).eval()
    ours = build("densenet121_cifar", image_size=32, pretrained=True).eval()
    x = torch.randn(2, 64, 8, 8)
    y = x
    for name, module in theirs.features.named_children():
        y = module(y) if name not in ("conv0", "norm0", "relu0", "pool0") else y
    torch.testing.assert_close(ours[1:-1](x), y.relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "architecture", "options"),
    [
        ("resnet18_cifar", models.resnet18, {"width": 8}),
        ("mobilenetv3_cifar", models.mobilenet_v3_large, {"width": 0.5}),
    ],
)
def test_weights_of_another_shape_are_one_line(weights_of, name, architecture, options):
    weights_of(architecture)
    with pytest.raises(
        ConfigError, match=r"^model.pretrained=true does not fit the other options of the model: \S+"
    ):
        build(name, pretrained=True, **options)


def test_a_download_that_fails_is_one_line(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(
        ConfigError, match=r"^the weights of resnet18 cannot be downloaded \(no network\): put https"
    ):
        build("resnet18_cifar", pretrained=True)


@pytest.mark.parametrize(
    ("name", "options"), [("resnet18_cifar", {}), ("densenet121_cifar", {"image_size": 32})]
)
def test_torchs_own_initialisation(name, options):
    """Uniform within 1 / √fan-in, which Kaiming's normal distribution exceeds."""

    def largest(model: nn.Module) -> list[Tensor]:
        convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        return [m.weight.abs().max() * m.weight[0].numel() ** 0.5 for m in convolutions]

    assert max(largest(build(name, init="torch", **options))) <= 1 + 1e-6
    assert min(largest(build(name, **options))[1:]) > 1  # DenseNet's stem is torch's anyway
