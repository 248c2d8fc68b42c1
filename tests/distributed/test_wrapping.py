"""What counts as a block of a model, and that running blocks again changes nothing."""

import pytest
import torch
import torchvision
from torch import nn

from trainer.distributed.wrapping import blocks_of, recompute, units_of_size
from trainer.models.gpt import GPT
from trainer.models.resnet import ResNet18


def names(model: nn.Module, parts: list[nn.Module]) -> list[str]:
    of = {module: name for name, module in model.named_modules()}
    return [of[part] for part in parts]


def gpt() -> nn.Module:
    return GPT(layers=3, width=8, heads=2, vocab_size=11, context_length=4)


def test_transformer_and_residual_blocks() -> None:
    model = gpt()
    assert names(model, blocks_of(model)) == ["blocks.0", "blocks.1", "blocks.2"]
    resnet = ResNet18(num_classes=10, in_channels=3)
    assert names(resnet, blocks_of(resnet)) == [f"blocks.{i}" for i in range(8)]


@pytest.mark.parametrize(
    ("arch", "count", "first"),
    [
        ("resnet18", 8, "layer1.0"),
        ("vit_b_16", 12, "encoder.layers.encoder_layer_0"),
        ("convnext_tiny", 18, "features.1.0"),
        ("vgg11", 0, None),
    ],
)
def test_of_torchvision(arch: str, count: int, first: str | None) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(arch)
    found = names(model, blocks_of(model))
    assert len(found) == count
    assert next(iter(found), None) == first


def test_a_block_that_shares_a_parameter_stays_with_the_rest() -> None:
    model = gpt()
    model.get_submodule("blocks.1").register_parameter("shared", model.get_parameter("tokens.weight"))
    assert names(model, blocks_of(model)) == ["blocks.0", "blocks.2"]


def test_parts_by_size_are_disjoint_and_large_enough() -> None:
    model = gpt()
    parts = units_of_size(model, 300)
    seen: set[nn.Parameter] = set()
    for part in parts:  # the inner ones first
        own = set(part.parameters()) - seen
        assert sum(p.numel() for p in own) >= 300
        seen |= own
    assert len(parts) > 3


def test_blocks_that_run_again_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    plain, again = gpt(), gpt()
    again.load_state_dict(plain.state_dict())
    runs: list[int] = []
    again.get_submodule("blocks.0.attention").register_forward_hook(lambda *_: runs.append(0))
    recompute(blocks_of(again), 2)
    tokens = torch.randint(11, (2, 4))
    for model in (plain, again):
        model(tokens).square().sum().backward()
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
    assert len(runs) == 2
