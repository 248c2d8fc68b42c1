"""GPT's options: equal to the models of the package transformers, with a cache or without, all of it with factors."""

import itertools
import sys

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from tests.models.test_models import build, count
from trainer.config.compose import CONF
from trainer.errors import ConfigError, MissingExtra
from trainer.models.base import CachingModel
from trainer.models.decoder_block import rotate
from trainer.optim import AdaFisher

SMALL = {"layers": 2, "width": 32, "heads": 4, "vocab_size": 50, "context_length": 16}
LLAMA = {"norm": "rms", "position": "rope", "mlp": "swiglu", "bias": False, "tied": False}
KINDS = {
    "gpt2": {"mlp": "gelu_tanh"},
    "llama": LLAMA,
    "shared heads": {**LLAMA, "kv_heads": 2},
    "one head of keys": {"kv_heads": 1, "position": "rope"},
    "qk_norm": {**LLAMA, "kv_heads": 2, "qk_norm": True},
    "layer norm of queries": {"qk_norm": True, "bias": False},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def preset(name: str) -> dict:
    """Its options, without those that it takes from conf/model/gpt.yaml."""
    values = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{name}.yaml"))
    assert values.pop("defaults") == ["gpt", "_self_"]
    return values


@pytest.mark.parametrize(
    ("name", "vocab_size", "parameters"),
    [
        ("gpt2_124m", 50257, 124_439_808),
        ("gpt2_350m", 50257, 354_823_168),
        ("llama_60m", 32000, 58_073_600),
        ("llama_160m", 32000, 162_417_408),
    ],
)
def test_presets_have_the_published_sizes(name: str, vocab_size: int, parameters: int) -> None:
    with torch.device("meta"):
        model = build("gpt", **preset(name), vocab_size=vocab_size, context_length=1024)
    assert count(model) == parameters
    assert f"{parameters:,} parameters" in (CONF / "model" / f"{name}.yaml").read_text()


# Against transformers --------------------------------------------------------------------------------------------


def randomise(model: nn.Module) -> nn.Module:
    """Weights large enough that every part of the model matters."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    return model.eval()


def weights_from_gpt2(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of GPT2LMHeadModel, whose matrices are transposed."""
    names = {
        "ln_1": "attention_norm",
        "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.out",
        "ln_2": "mlp_norm",
        "mlp.c_fc": "mlp.0",
        "mlp.c_proj": "mlp.2",
    }
    ours = {
        "tokens.weight": theirs["transformer.wte.weight"],
        "positions.weight": theirs["transformer.wpe.weight"],
        "norm.weight": theirs["transformer.ln_f.weight"],
        "norm.bias": theirs["transformer.ln_f.bias"],
        "head.weight": theirs["lm_head.weight"],
    }
    for block, (their, our) in itertools.product(range(SMALL["layers"]), names.items()):
        for kind in ("weight", "bias"):
            tensor = theirs[f"transformer.h.{block}.{their}.{kind}"]
            ours[f"blocks.{block}.{our}.{kind}"] = tensor.T if tensor.dim() == 2 else tensor
    return ours


def weights_from_llama(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of LlamaForCausalLM, or of Qwen3's, which normalises queries and keys."""
    names = {
        "input_layernorm": "attention_norm",
        "self_attn.o_proj": "attention.out",
        "self_attn.q_norm": "attention.q_norm",
        "self_attn.k_norm": "attention.k_norm",
        "post_attention_layernorm": "mlp_norm",
        "mlp.gate_proj": "mlp.gate",
        "mlp.up_proj": "mlp.up",
        "mlp.down_proj": "mlp.down",
    }
    ours = {
        "tokens.weight": theirs["model.embed_tokens.weight"],
        "norm.weight": theirs["model.norm.weight"],
        "head.weight": theirs["lm_head.weight"],
    }
    for block in range(SMALL["layers"]):
        layer = f"model.layers.{block}"
        parts = [theirs[f"{layer}.self_attn.{part}_proj.weight"] for part in "qkv"]
        ours[f"blocks.{block}.attention.qkv.weight"] = torch.cat(parts)
        for their, our in names.items():
            if f"{layer}.{their}.weight" in theirs:
                ours[f"blocks.{block}.{our}.weight"] = theirs[f"{layer}.{their}.weight"]
    return ours


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama", "shared heads", "qk_norm"])
def test_logits_are_those_of_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
    llama = {
        **sizes,
        "num_key_value_heads": KINDS[kind].get("kv_heads", 4),
        "head_dim": 8,
        "intermediate_size": 128,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 16,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    if kind == "gpt2":
        config = transformers.GPT2Config(**sizes, n_positions=16, bos_token_id=0, eos_token_id=0)
        theirs = transformers.GPT2LMHeadModel(config)
    elif kind == "qk_norm":
        theirs = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**llama))
    else:
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama))
    randomise(theirs)
    ours = build("gpt", **SMALL, **KINDS[kind], mlp_width=128).eval()
    convert = weights_from_gpt2 if kind == "gpt2" else weights_from_llama
    ours.load_state_dict(convert(theirs.state_dict()))
    assert count(ours) == count(theirs)
    tokens = torch.randint(50, (3, 16))
    expected = theirs(tokens).logits
    assert expected.std() > 0.3
    torch.testing.assert_close(ours(tokens), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "options"),
    [
        (
            "llama",
            {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4},
        ),
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 4}),
    ],
)
def test_a_model_of_transformers_from_its_config(arch: str, options: dict) -> None:
    pytest.importorskip("transformers")
    model = build("transformers", arch=arch, options=options, vocab_size=50, context_length=16)
    logits = model(torch.randint(50, (2, 16)))
    assert logits.shape == (2, 16, 50)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.slow
def test_misfits_of_transformers_are_one_line() -> None:
    pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "context_length": 16}
    with pytest.raises(ConfigError, match=r"unknown model.arch=lama; did you mean llama"):
        build("transformers", arch="lama", **sizes)
    with pytest.raises(
        ConfigError, match=r"model.arch=llama has no option hiden_size; did you mean hidden_size"
    ):
        build("transformers", options={"hiden_size": 3}, **sizes)
    with pytest.raises(ConfigError, match=r"model.arch=llama of transformers cannot be built: [^\n]*33"):
        build("transformers", options={"hidden_size": 33}, **sizes)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"needs the package transformers: pip install '.\[zoo\]'"):
        build("transformers", vocab_size=50, context_length=16)


# By itself -------------------------------------------------------------------------------------------------------


@each_kind
def test_the_past_alone_counts_and_every_parameter_gets_a_gradient(kind: str) -> None:
    model = build("gpt", **SMALL, **KINDS[kind])
    tokens = torch.randint(50, (2, 16))
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 50
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])
    before.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@each_kind
def test_a_cache_gives_the_same_logits(kind: str) -> None:
    model = randomise(build("gpt", **SMALL, **KINDS[kind]))
    assert isinstance(model, CachingModel)
    tokens = torch.randint(50, (1, 16))
    expected = model(tokens)
    cache = model.new_cache()
    got = [
        model(tokens[:, :5], cache),
        *(model(tokens[:, place : place + 1], cache) for place in range(5, 16)),
    ]
    assert cache.length == 16
    torch.testing.assert_close(torch.cat(got, 1), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="context_length=16 is less than the 17 tokens"):
        model(tokens[:, :1], cache)


def test_rope_depends_on_distances_alone() -> None:
    """Scores of queries and keys are the same wherever in the text both are."""
    q, k = torch.randn(2, 1, 4, 3, 8)
    here = rotate(q, 0, 100.0) @ rotate(k, 0, 100.0).mT
    torch.testing.assert_close(here, rotate(q, 7, 100.0) @ rotate(k, 7, 100.0).mT)
    assert not torch.allclose(here, q @ k.mT)
    torch.testing.assert_close(rotate(q, 5, 100.0).norm(dim=-1), q.norm(dim=-1))


@each_kind
def test_adafisher_has_factors_of_every_layer(kind: str) -> None:
    model = build("gpt", **SMALL, **KINDS[kind])
    optimizer = AdaFisher(model)
    model(torch.randint(50, (2, 16))).logsumexp(-1).mean().backward()
    optimizer.step()
    fallback = [row.parameter for row in optimizer.coverage() if "gradient" in row.source]
    assert fallback == []


def test_gpt2s_parameters_keep_their_names() -> None:
    """Checkpoints have them."""
    state = build("gpt", **SMALL).state_dict()
    assert sorted(name for name in state if ".1." not in name) == [
        *(
            f"blocks.0.{name}"
            for name in [
                "attention.out.bias",
                "attention.out.weight",
                "attention.qkv.bias",
                "attention.qkv.weight",
                "attention_norm.bias",
                "attention_norm.weight",
                "mlp.0.bias",
                "mlp.0.weight",
                "mlp.2.bias",
                "mlp.2.weight",
                "mlp_norm.bias",
                "mlp_norm.weight",
            ]
        ),
        "head.weight",
        "norm.bias",
        "norm.weight",
        "positions.weight",
        "tokens.weight",
    ]


def test_the_width_of_a_gated_mlp() -> None:
    assert build("gpt", **SMALL, mlp="swiglu").blocks[0].mlp.up.out_features == 128
    assert build("gpt", **{**SMALL, "width": 768}, mlp="swiglu").blocks[0].mlp.up.out_features == 2048
    assert build("gpt", **SMALL, mlp_width=40).blocks[0].mlp[0].out_features == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_heads": 3}, "model.heads=4 must be a multiple of model.kv_heads=3"),
        ({"position": "rope", "width": 36}, "a head of model.width=36 / model.heads=4 has 9: make it even"),
        ({"norm": "batch"}, "model.norm=batch is wrong: it must be one of layer, rms"),
    ],
)
def test_misfits_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build("gpt", **{**SMALL, **options})
    assert message in str(error.value)
