import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainer.errors import ConfigError
from trainer.models import MODELS


def build(name, **options):
    torch.manual_seed(0)
    return MODELS.build(MODELS.check({"name": name, **options}))


def count(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


CIFAR = {"num_classes": 10, "in_channels": 3}


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("resnet18_cifar", CIFAR, 11_173_962),
        ("resnet34_cifar", CIFAR, 21_282_122),
        ("resnet50_cifar", CIFAR, 23_520_842),
        ("resnet101_cifar", CIFAR, 42_512_970),
        ("densenet121_cifar", {**CIFAR, "image_size": 32}, 6_956_298),
        ("mobilenetv3_cifar", CIFAR, 4_206_658),
        ("mobilenetv3_cifar", {**CIFAR, "dense": True}, 70_045_738),
        ("swin_tiny_cifar", {**CIFAR, "image_size": 32}, 26_598_646),
        (
            "swin_tiny_cifar",
            {"width": 128, "depths": (2, 2, 18, 2), "in_channels": 3, "num_classes": 200, "image_size": 64},
            85_266_656,
        ),
        ("focalnet_tiny_cifar", {**CIFAR, "image_size": 32}, 27_662_350),
        ("focalnet_tiny_cifar", {**CIFAR, "image_size": 32, "dense": True}, 100_834_702),
        ("cct2_cifar", {**CIFAR, "image_size": 32}, 283_723),
        ("cct2_cifar", {**CIFAR, "image_size": 32, "released": True}, 821_003),
        ("autoencoder", {"in_channels": 1, "image_size": 28}, 2_837_314),
        (
            "gpt",
            {"layers": 12, "width": 768, "heads": 12, "vocab_size": 50257, "context_length": 1024},
            124_439_808,
        ),
    ],
)
def test_has_as_many_parameters_as_the_literature_says(name, options, parameters):
    with torch.device("meta"):
        assert count(build(name, **options)) == parameters


@pytest.mark.parametrize(
    ("name", "image_size", "in_channels", "options"),
    [
        ("mlp", 8, 1, {}),
        ("mlp", (6, 10), 3, {"widths": []}),
        ("cnn", 8, 1, {}),
        ("cnn", 28, 1, {"dropout": 0.2}),
        ("cnn", (32, 24), 3, {"widths": [8, 8, 8, 8]}),
        ("resnet18_cifar", 8, 1, {}),
        ("resnet50_cifar", 16, 3, {}),
        ("densenet121_cifar", 8, 3, {"growth": 4}),
        ("mobilenetv3_cifar", 8, 1, {"width": 0.5}),
        ("mobilenetv3_cifar", 16, 3, {"width": 0.25, "dense": True}),
        ("swin_tiny_cifar", (16, 32), 3, {"width": 32, "window": 2}),
        ("focalnet_tiny_cifar", (16, 20), 1, {"width": 8, "depths": [1, 1, 2, 1]}),
        ("cct2_cifar", (9, 16), 1, {}),
        ("cct2_cifar", 32, 3, {"released": True}),
        ("torchvision", 32, 1, {"arch": "squeezenet1_0"}),
        ("torchvision", 32, 3, {"arch": "googlenet"}),
        ("timm", 32, 1, {"arch": "vit_tiny_patch16_224", "options": {"img_size": 32, "depth": 1}}),
    ],
)
def test_classifiers_give_a_logit_per_class_and_every_parameter_a_gradient(
    name, image_size, in_channels, options
):
    if name == "timm":
        pytest.importorskip("timm")
    facts = {"num_classes": 7, "in_channels": in_channels, "image_size": image_size}
    model = build(name, **options, **{k: v for k, v in facts.items() if k in MODELS.get(name).options})
    assert model.training
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    logits = model(torch.randn(2, in_channels, *size))
    assert logits.shape == (2, 7)
    F.cross_entropy(logits, torch.tensor([0, 6])).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_autoencoder_gives_images_of_its_inputs_shape():
    model = build("autoencoder", in_channels=3, image_size=(4, 6), widths=[20, 5])
    assert model(torch.randn(2, 3, 4, 6)).shape == (2, 3, 4, 6)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linear] == [20, 5, 20, 72]
    assert MODELS.get("autoencoder").tags["objective"] == "reconstruction"


def test_resnet18_is_torchvisions_but_for_the_stem():
    from torchvision.models import resnet18

    ours, theirs = build("resnet18_cifar", **CIFAR), resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    # both list their tensors in the order of the forward pass, a block's shortcut last
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


GPT = {"layers": 2, "width": 32, "heads": 4, "vocab_size": 11, "context_length": 8}


def test_gpt_predicts_from_the_past_only():
    model = build("gpt", **GPT).eval()
    tokens = torch.randint(11, (2, 8))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    before, after = model(tokens), model(changed)
    assert before.shape == (2, 8, 11)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_gpt_takes_shorter_sequences_but_no_longer_ones():
    model = build("gpt", **GPT)
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 11)
    with pytest.raises(ConfigError, match="context_length=8 is less than the 9 tokens"):
        model(torch.zeros(1, 9, dtype=torch.long))


def test_gpt_attention_is_softmax_of_scaled_products():
    attention = build("gpt", **GPT).blocks[0].attention.eval()
    x = torch.randn(2, 5, 32)
    q, k, v = (t.view(2, 5, 4, 8).transpose(1, 2) for t in attention.qkv(x).split(32, dim=-1))
    scores = (q @ k.transpose(2, 3) / 8**0.5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    expected = attention.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 32))
    torch.testing.assert_close(attention(x), expected)


def test_gpt_head_may_be_tied_and_the_first_loss_is_that_of_guessing():
    tied, untied = build("gpt", **GPT), build("gpt", **GPT, tied=False)
    assert tied.head.weight is tied.tokens.weight
    assert count(untied) - count(tied) == 11 * 32
    tokens = torch.randint(11, (4, 8))
    loss = F.cross_entropy(tied(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten())
    assert loss.item() == pytest.approx(torch.tensor(11.0).log().item(), rel=0.02)


def test_gpt_scales_residual_projections_with_depth():
    model = build("gpt", layers=8, width=128, heads=4, vocab_size=64, context_length=8)
    block = model.blocks[3]
    for layer in (block.attention.out, block.mlp[2]):
        assert layer.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("name", ["mlp", "cnn", "gpt"])
def test_dropout_acts_in_training_only(name):
    sizes = {"vocab_size": 11, "context_length": 8} if name == "gpt" else {"image_size": 8, **CIFAR}
    model = build(name, dropout=0.5, **sizes)
    inputs = torch.randint(11, (4, 8)) if name == "gpt" else torch.randn(4, 3, 8, 8)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "cnn", "image_size": 3, **CIFAR}, "needs 4 pixels a side, but there are 3"),
        ({"name": "cnn", "image_size": 8, "widths": [], **CIFAR}, "at least one width"),
        ({"name": "densenet121_cifar", "image_size": 7, **CIFAR}, "needs 8 pixels a side"),
        (
            {"name": "swin_tiny_cifar", "image_size": 16, **CIFAR},
            "does not tile images of (16, 16) in stage 3",
        ),
        ({"name": "swin_tiny_cifar", "image_size": 32, "width": 40, **CIFAR}, "must be a multiple of 32"),
        ({"name": "focalnet_tiny_cifar", "image_size": 8, **CIFAR}, "needs 16 pixels a side"),
        ({"name": "gpt1", **GPT, "heads": 3}, "model.width=32 must be a multiple of model.heads=3"),
        ({"name": "gpt", **GPT, "heads": 3}, "model.width=32 must be a multiple of model.heads=3"),
        ({"name": "gpt"}, "model.vocab_size is unknown"),
        ({"name": "mlp", "image_size": 8}, "model.in_channels is unknown"),
        ({"name": "mlp"}, "model.image_size is unknown"),
    ],
)
def test_a_misfit_is_one_line(config, message):
    with pytest.raises(ConfigError) as error:
        build(**config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
