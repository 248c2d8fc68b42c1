"""GPT-1 against torch's post-norm layer with the same weights; where its embeddings come from."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from trainer.errors import ConfigError, DataError
from trainer.models import MODELS
from trainer.models.pretrained import replaced_weights
from trainer.optim import AdaFisher

SMALL = {"layers": 2, "width": 32, "heads": 4, "vocab_size": 11, "context_length": 8}


def build(**options):
    torch.manual_seed(0)
    return MODELS.build(MODELS.check({"name": "gpt1", **SMALL, **options}))


@pytest.fixture
def file(tmp_path):
    """Weights under OpenAI's names, of more positions than the model needs."""
    tensors = {
        "transformer.tokens_embed.weight": torch.randn(11, 32),
        "transformer.positions_embed.weight": torch.randn(20, 32),
        "transformer.h.0.attn.c_attn.weight": torch.randn(32, 96),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return str(tmp_path / "model.safetensors"), tensors


def test_blocks_are_torchs_post_norm_layers():
    model = build().eval()
    tokens = torch.randint(11, (2, 8))
    x = model.tokens.weight[tokens] + model.positions.weight
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(32, 4, 128, 0.0, "gelu", batch_first=True).eval()
        attention = block.attention
        qkv = (attention.query, attention.key, attention.value)
        layer.self_attn.in_proj_weight = nn.Parameter(torch.cat([part.weight for part in qkv]))
        layer.self_attn.in_proj_bias = nn.Parameter(torch.cat([part.bias for part in qkv]))
        layer.self_attn.out_proj = attention.out
        layer.linear1, _, layer.linear2 = block.mlp
        layer.norm1, layer.norm2 = block.attention_norm, block.mlp_norm
        x = layer(x, src_mask=torch.full((8, 8), -torch.inf).triu(1), is_causal=True)
    torch.testing.assert_close(model(tokens), x @ model.tokens.weight.T)


def test_embeddings_of_a_file(file):
    path, tensors = file
    model = build(embeddings=path, freeze_embeddings=True)
    assert torch.equal(model.head.weight, tensors["transformer.tokens_embed.weight"])
    assert torch.equal(model.positions.weight, tensors["transformer.positions_embed.weight"][:8])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"tokens.weight", "positions.weight"}
    with replaced_weights():  # by those of a checkpoint
        build(embeddings="nowhere", freeze_embeddings=True)


def test_learns_as_many_parameters_as_the_paper_says_with_frozen_embeddings(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(
        {"tokens_embed.weight": torch.zeros(11, 768), "positions_embed.weight": torch.zeros(8, 768)}, file
    )
    model = MODELS.build(
        MODELS.check(
            {"name": "gpt1", "vocab_size": 11, "context_length": 8}
            | {"embeddings": str(file), "freeze_embeddings": True}
        )
    )
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 28_351_488


def test_random_embeddings_are_not_frozen():
    with pytest.raises(ConfigError, match=r"would keep random embeddings: name model.embeddings, too"):
        build(freeze_embeddings=True)


@pytest.mark.parametrize("freeze", [False, True])
def test_adafisher_sees_the_rows_of_every_layer(file, freeze):
    model = build(embeddings=file[0], freeze_embeddings=freeze)
    optimizer = AdaFisher(model, lr=1e-3)
    before = model.tokens.weight.clone()
    tokens = torch.randint(11, (4, 8))
    F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    optimizer.step()
    assert "gradient" not in {row.source for row in optimizer.coverage()}
    assert torch.equal(before, model.tokens.weight) == freeze


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 64}, "holds [11, 32] as tokens_embed.weight, the model needs [11, 64]"),
        ({"vocab_size": 10}, "holds [11, 32] as tokens_embed.weight, the model needs [10, 32]"),
        ({"context_length": 21}, "holds [20, 32] as positions_embed.weight, the model needs [21, 32]"),
    ],
)
def test_embeddings_of_another_shape_are_one_line(file, options, message):
    with pytest.raises(DataError) as error:
        build(embeddings=file[0], **options)
    assert str(error.value) == f"model.embeddings={file[0]} {message}"


def test_files_without_embeddings_are_one_line(tmp_path):
    (tmp_path / "text").write_text("no tensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other")
    for name, message in (
        ("text", "cannot be read"),
        ("none", "cannot be read"),
        ("other", "has no tokens_embed"),
    ):
        with pytest.raises(DataError, match=message) as error:
            build(embeddings=str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_longer_sequences_are_refused():
    with pytest.raises(ConfigError, match="context_length=8 is less than the 9 tokens"):
        build()(torch.zeros(1, 9, dtype=torch.long))
