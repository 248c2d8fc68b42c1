"""H and S of other libraries' layers against brute force; each is skipped where its library is missing."""

import copy
import importlib
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.optim.adafisher.test_layers import SAMPLES, captured, explicit_rows, mean_loss, per_sample_gradient
from trainer.optim.adafisher import AdaFisher
from trainer.optim.adafisher.layers import LAYERS, layer_of
from trainer.optim.adafisher.rules import RULES

TRANSFORMERS = "transformers.models."


def make(path: str, *args: Any, **options: Any) -> Any:
    """A module in float64, with random parameters."""
    library, _, name = path.rpartition(".")
    pytest.importorskip(library.partition(".")[0])
    module = getattr(importlib.import_module(library), name)(*args, **options).double()
    torch.manual_seed(0)
    for param in module.parameters():
        nn.init.normal_(param)
    return module


def trained(module: nn.Module, x: Tensor, rule: str = "calibrated") -> tuple[AdaFisher, Tensor]:
    """After one step, with the gradient of each sample's loss with respect to the output."""
    y = module(x).detach()
    target = torch.randn_like(y)
    return captured(module, x, mean_loss(target), rule), per_sample_gradient(y, target)


# Linear maps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "sizes"), [("transformers.pytorch_utils.Conv1D", (4, 5)), ("timm.layers.Linear", (5, 4))]
)
def test_linear(path: str, sizes: tuple[int, int]) -> None:
    module = make(path, *sizes)
    x = torch.randn(SAMPLES, 2, 5, dtype=torch.float64)
    optimizer, s = trained(module, x)
    H = torch.cat([x.square().mean((0, 1)), torch.ones(1)])
    S = s.square().mean((0, 1))
    for param in module.parameters():
        torch.testing.assert_close(optimizer.state[param]["H"], H)
        torch.testing.assert_close(optimizer.state[param]["S"], S)
    outer = torch.outer(S / S.mean(), H / H.mean())[:, :-1] + 0.01
    expected = outer if module.weight.shape == outer.shape else outer.T
    torch.testing.assert_close(optimizer.preconditioner(module.weight), expected)


def test_scaled_embedding() -> None:
    module = make(TRANSFORMERS + "gemma3.modeling_gemma3.Gemma3TextScaledWordEmbedding", 6, 3, 0, 5.0)
    tokens = torch.randint(1, 6, (SAMPLES, 4))
    optimizer, s = trained(module, tokens)
    one_hot = nn.functional.one_hot(tokens, 6).double().flatten(0, 1)
    state = optimizer.state[module.weight]
    torch.testing.assert_close(state["H"], one_hot.mean(0))
    torch.testing.assert_close(state["S"], (5 * s).square().mean((0, 1)))


@pytest.mark.parametrize("rule", ["paper", "calibrated"])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_with_the_padding_of_tensorflow(stride: int, rule: str) -> None:
    module = make("timm.layers.Conv2dSame", 4, 6, (3, 2), stride=stride, dilation=(1, 2), groups=2)
    x = torch.randn(SAMPLES, 4, 5, 6, dtype=torch.float64)
    optimizer, s = trained(module, x, rule)
    H = torch.stack([rows.square().mean(0) for rows in explicit_rows(module, x)])
    H = torch.cat([H, torch.ones(len(H), 1)], 1)
    H = H.mean(0) if rule == "paper" else H
    torch.testing.assert_close(optimizer.state[module.weight]["H"], H)
    torch.testing.assert_close(optimizer.state[module.weight]["S"], s.square().mean((0, 2, 3)))


# Norms ----------------------------------------------------------------------------------------------------------

LAST, CHANNELS = (4, 5), (4, 3, 2)
NORMS: dict[
    str, tuple[Any, dict[str, Any], tuple[int, ...]]
] = {  # the first argument, others, the input's shape
    "timm.layers.LayerNorm": (5, {}, LAST),
    "timm.layers.norm.LayerNormFp32": (5, {}, LAST),
    "timm.layers.RmsNorm": (5, {}, LAST),
    "timm.layers.norm.RmsNormFp32": (5, {}, LAST),
    "timm.layers.GroupNorm": (4, {"num_groups": 2}, CHANNELS),
    "timm.layers.GroupNorm1": (4, {}, CHANNELS),
    "timm.layers.LayerNorm2d": (4, {}, CHANNELS),
    "timm.layers.norm.LayerNorm2dFp32": (4, {}, CHANNELS),
    "timm.layers.RmsNorm2d": (4, {}, CHANNELS),
    "timm.layers.norm.RmsNorm2dFp32": (4, {}, CHANNELS),
    "torchvision.models.convnext.LayerNorm2d": (4, {}, CHANNELS),
    TRANSFORMERS + "llama.modeling_llama.LlamaRMSNorm": (5, {}, LAST),
    TRANSFORMERS + "gemma3.modeling_gemma3.Gemma3RMSNorm": (5, {}, LAST),  # multiplies by 1 + w
    TRANSFORMERS + "mixtral.modeling_mixtral.MixtralRMSNorm": (5, {}, LAST),
    TRANSFORMERS + "t5.modeling_t5.T5LayerNorm": (5, {}, LAST),
    TRANSFORMERS + "switch_transformers.modeling_switch_transformers.SwitchTransformersLayerNorm": (
        5,
        {},
        LAST,
    ),
    TRANSFORMERS + "udop.modeling_udop.UdopLayerNorm": (5, {}, LAST),
    TRANSFORMERS + "pix2struct.modeling_pix2struct.Pix2StructLayerNorm": (5, {}, LAST),
    TRANSFORMERS + "pop2piano.modeling_pop2piano.Pop2PianoLayerNorm": (5, {}, LAST),
    TRANSFORMERS + "kosmos2_5.modeling_kosmos2_5.Kosmos2_5LayerNorm": (5, {}, LAST),
    TRANSFORMERS + "deberta.modeling_deberta.DebertaLayerNorm": (5, {}, LAST),
    TRANSFORMERS + "cohere.modeling_cohere.CohereLayerNorm": ((3, 5), {}, (4, 3, 5)),
    TRANSFORMERS + "convnext.modeling_convnext.ConvNextLayerNorm": (
        4,
        {"data_format": "channels_first"},
        CHANNELS,
    ),
    TRANSFORMERS + "sam.modeling_sam.SamLayerNorm": (5, {"data_format": "channels_last"}, LAST),
}


@pytest.mark.parametrize("path", NORMS)
def test_norms(path: str) -> None:
    first, options, shape = NORMS[path]
    module = make(path, first, **options)
    x = 2 * torch.randn(SAMPLES, *shape, dtype=torch.float64) + 1
    optimizer, s = trained(module, x)

    # what the scale multiplies: how the output, which is linear in the scale, depends on it
    params = {name: p.detach() for name, p in module.named_parameters()}
    one, zero = (
        functional_call(module, {**params, "weight": torch.full_like(module.weight, value)}, (x,))
        for value in (1, 0)
    )
    x_hat = one - zero
    axes = [a for a in range(x.dim()) if (a != 1 if shape == CHANNELS else a < x.dim() - module.weight.dim())]
    S = s.square().mean(axes).flatten()
    # some of them compute in float32
    torch.testing.assert_close(
        optimizer.state[module.weight]["H"], x_hat.square().mean(axes).flatten(), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(optimizer.state[module.weight]["S"], S)
    if getattr(module, "bias", None) is not None:
        torch.testing.assert_close(optimizer.state[module.bias]["H"], torch.ones(1, dtype=torch.float64))
        torch.testing.assert_close(optimizer.state[module.bias]["S"], S)


TIMM = "timm.layers.norm_act."
WITH_ACTIVATION: dict[str, tuple[Any, dict[str, Any], tuple[int, ...]]] = {
    TIMM + "BatchNormAct2d": (4, {"act_layer": nn.SiLU}, CHANNELS),
    TIMM + "SyncBatchNormAct": (4, {}, CHANNELS),
    TIMM + "GroupNormAct": (4, {"num_groups": 2, "act_layer": nn.ReLU}, CHANNELS),  # in place
    TIMM + "GroupNorm1Act": (4, {"apply_act": False}, CHANNELS),
    TIMM + "LayerNormAct": (5, {}, LAST),
    TIMM + "LayerNormActFp32": (5, {}, LAST),
    TIMM + "LayerNormAct2d": (4, {}, CHANNELS),
    TIMM + "LayerNormAct2dFp32": (4, {}, CHANNELS),
    TIMM + "RmsNormAct": (5, {}, LAST),
    TIMM + "RmsNormActFp32": (5, {}, LAST),
    TIMM + "RmsNormAct2d": (4, {}, CHANNELS),
    TIMM + "RmsNormAct2dFp32": (4, {}, CHANNELS),
}


@pytest.mark.parametrize("path", WITH_ACTIVATION)
def test_norms_with_their_activation(path: str) -> None:
    first, options, shape = WITH_ACTIVATION[path]
    module = make(path, first, **options)
    if path.endswith("SyncBatchNormAct"):  # as timm's conversion of a BatchNormAct2d leaves it
        module.drop, module.act = nn.Identity(), nn.GELU()
    x = 2 * torch.randn(SAMPLES, *shape, dtype=torch.float64) + 1

    bare = copy.deepcopy(module)
    bare.act = nn.Identity()
    z = bare(x).detach().requires_grad_()  # between the norm and its activation
    y = nn.Sequential(copy.deepcopy(module.act))(1 * z)
    target = torch.randn_like(y)
    (s,) = torch.autograd.grad((y - target).pow(3).sum(), z)
    optimizer = captured(module, x, mean_loss(target), "calibrated")

    params = {name: p.detach() for name, p in bare.named_parameters()}
    one, zero = (
        functional_call(bare, {**params, "weight": torch.full_like(module.weight, value)}, (x,))
        for value in (1, 0)
    )
    axes = [a for a in range(x.dim()) if (a != 1 if shape == CHANNELS else a < x.dim() - 1)]
    # some of them compute in float32
    state, close = optimizer.state[module.weight], {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(state["H"], (one - zero).square().mean(axes), **close)
    torch.testing.assert_close(state["S"], s.square().mean(axes), **close)
    if getattr(module, "bias", None) is not None:
        torch.testing.assert_close(optimizer.state[module.bias]["S"], s.square().mean(axes), **close)


def test_norms_that_normalize_otherwise_are_not_known() -> None:
    grouped = make(TRANSFORMERS + "llama.modeling_llama.LlamaRMSNorm", 6)
    grouped.group_size = 2
    assert layer_of(grouped) is None
    assert layer_of(make(TRANSFORMERS + "qwen3_next.modeling_qwen3_next.Qwen3NextRMSNormGated", 6)) is None


OTHERS = {
    "timm.Linear",
    "timm.Conv2dSame",
    "transformers.Conv1D",
    "transformers.Gemma3TextScaledWordEmbedding",
}


def test_every_named_layer_type_is_tested() -> None:
    tested = OTHERS | {
        f"{path.partition('.')[0]}.{path.rpartition('.')[2]}" for path in NORMS | WITH_ACTIVATION
    }
    for name in (name for name in LAYERS if isinstance(name, str)):
        assert any(fnmatchcase(one, name) for one in tested), name


# How names are found --------------------------------------------------------------------------------------------


def norm_of(module: str) -> type:
    """A class that says it is another library's ``RmsNorm``."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return nn.RMSNorm.forward(self, x)

    return type("RmsNorm", (nn.RMSNorm,), {"__module__": module, "forward": forward})


@pytest.mark.parametrize(
    ("rule", "module", "known"),
    [
        ("calibrated", "timm.layers.anywhere", True),
        ("paper", "timm.layers.anywhere", True),
        ("released", "timm.layers.anywhere", False),
        ("calibrated", "timm_like.layers", False),
    ],
)
def test_a_name_is_that_of_the_package_and_the_class(rule: Any, module: str, known: bool) -> None:
    assert (layer_of(norm_of(module)(4), RULES[rule].layers) is not None) is known


def test_a_subclass_with_its_own_forward_is_not_what_its_base_is() -> None:
    base = norm_of("timm.layers.norm")
    assert layer_of(type("Mine", (base,), {})(4)) is not None
    assert layer_of(type("Mine", (base,), {"forward": lambda self, x: x})(4)) is None


# Models ---------------------------------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
MODELS: dict[
    str, tuple[str, dict[str, Any], set[str]]
] = {  # its config, and the ends of names left to the gradient
    "GPT2LMHeadModel": ("GPT2Config", {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 32}, set()),
    "LlamaForCausalLM": ("LlamaConfig", SMALL, set()),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {**SMALL, "head_dim": 8}, set()),
    "MixtralForCausalLM": (
        "MixtralConfig",
        {**SMALL, "num_local_experts": 3},
        {"experts.gate_up_proj", "experts.down_proj", "mlp.gate.weight"},
    ),
}


def left_to_the_gradient(model: nn.Module) -> list[str]:
    """The parameters that have no factors from rows after a step, which all are finite."""
    optimizer = AdaFisher(model.train())
    tokens = torch.randint(32, (2, 6))
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    assert all(param.isfinite().all() for param in model.parameters())
    return [row.parameter for row in optimizer.coverage() if row.source == "gradient"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_language_models(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config, options, ends = MODELS[name]
    model = getattr(transformers, name)(getattr(transformers, config)(**options))
    left = left_to_the_gradient(model)
    assert {end for end in ends for parameter in left if parameter.endswith(end)} == ends
    assert all(parameter.endswith(tuple(ends)) for parameter in left)


@pytest.mark.slow
def test_a_network_of_norms_with_activations() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("efficientnet_b0", num_classes=3)
    optimizer = AdaFisher(model)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    assert {row.source for row in optimizer.coverage()} == {"Conv2d", "BatchNormAct2d", "Linear"}
    assert all(param.isfinite().all() for param in model.parameters())


@pytest.mark.slow
def test_adapters() -> None:
    """The parameters inside of LoRA are those of linear layers, which are called."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=2))
    assert left_to_the_gradient(model) == []
