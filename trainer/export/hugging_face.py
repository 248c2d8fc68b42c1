"""A language model as a folder that the package transformers loads: config.json and model.safetensors.

``model=gpt`` is GPT-2 or Llama there, by its options; a model of transformers is what it was. The tokenizer is not
written: it is that of the data.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.cli.stored_run import TrainedModel
from trainer.errors import ConfigError, UserError, one_line
from trainer.export.plain import write_tensors
from trainer.models.gpt import GPT
from trainer.models.transformers import CausalLM
from trainer.rundir.files import atomic_write_text
from trainer.rundir.strict_json import dumps

Weights = dict[str, Tensor]
GPT2: dict[str, list[Any]] = {
    "norm": ["layer"],
    "position": ["learned"],
    "mlp": ["gelu", "gelu_tanh"],
    "qk_norm": [False],
}
LLAMA: dict[str, list[Any]] = {
    "norm": ["rms"],
    "position": ["rope"],
    "mlp": ["swiglu"],
    "qk_norm": [False],
    "bias": [False],
}
"""Options of ``model=gpt`` with which it is that model."""
GPT2_LAYERS = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.0": "mlp.c_fc",
    "mlp.2": "mlp.c_proj",
}
LLAMA_LAYERS = {
    "attention_norm": "input_layernorm",
    "attention.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
"""The layers of a block, and their names in transformers."""


def write_hugging_face(trained: TrainedModel, out: Path) -> None:
    """Writes the folder; what else lies in it stays.

    Raises:
        ConfigError: the model has no counterpart in transformers.
        UserError: the folder cannot be written.
    """
    model, name = trained.model, trained.config.model["name"]
    if not isinstance(model, CausalLM | GPT):
        raise ConfigError(f"--to hf writes model=gpt and model=transformers: model={name} is neither")
    try:
        if isinstance(model, CausalLM):
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()
            model.model.save_pretrained(out)  # type: ignore[operator]
            return
        config, weights = counterpart(model, trained.config.model)
        out.mkdir(exist_ok=True)
        atomic_write_text(out / "config.json", dumps(config, indent=2))
        write_tensors(weights, out / "model.safetensors")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {one_line(error)}: choose another --out") from None


def counterpart(model: GPT, options: Mapping[str, Any]) -> tuple[dict[str, Any], Weights]:
    """The config and the weights of the model of transformers that computes the same.

    Args:
        model: with its weights.
        options: with which it was built.

    Raises:
        ConfigError: there is none.
    """
    if model.document_end is not None:
        raise ConfigError(
            "--to hf: the model tells documents apart (data.document_mask=true), and those of transformers attend to "
            "all that is before: export with --set data.document_mask=false for texts of one document"
        )
    shared = options["kv_heads"] not in (None, options["heads"])
    if not misfits(options, GPT2) and not shared:
        return gpt2_config(model, options), gpt2_weights(model)
    if not misfits(options, LLAMA):
        return llama_config(model, options), llama_weights(model, options)
    odd = misfits(options, LLAMA if options["position"] == "rope" else GPT2)
    odd = odd or [f"model.kv_heads={options['kv_heads']}"]
    which = "Llama's" if options["position"] == "rope" else "GPT-2's"
    raise ConfigError(f"--to hf: {odd[0]} does not fit {which} layout, and transformers has no other for it")


def misfits(options: Mapping[str, Any], layout: Mapping[str, list[Any]]) -> list[str]:
    """The options that a layout does not allow, as they are written."""
    return [f"model.{key}={options[key]}" for key, allowed in layout.items() if options[key] not in allowed]


def gpt2_config(model: GPT, options: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json for GPT-2."""
    state = model.state_dict()
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": len(state["tokens.weight"]),
        "n_positions": model.context_length,
        "n_embd": options["width"],
        "n_layer": options["layers"],
        "n_head": options["heads"],
        "n_inner": len(state["blocks.0.mlp.0.weight"]),
        "activation_function": {"gelu": "gelu", "gelu_tanh": "gelu_new"}[options["mlp"]],
        "resid_pdrop": options["dropout"],
        "embd_pdrop": options["dropout"],
        "attn_pdrop": options["dropout"],
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": options["tied"],
        "bos_token_id": None,
        "eos_token_id": None,
    }


def gpt2_weights(model: GPT) -> Weights:
    """The weights by GPT-2's names; its linear layers keep their matrices transposed, and all have biases."""
    ours = model.state_dict()
    names = {"norm": "ln_f"} | {
        f"blocks.{number}.{name}": f"h.{number}.{theirs}"
        for number in range(len(model.blocks))
        for name, theirs in GPT2_LAYERS.items()
    }
    found = {"wte.weight": ours["tokens.weight"], "wpe.weight": ours["positions.weight"]}
    for name, theirs in names.items():
        weight = ours[f"{name}.weight"]
        found[f"{theirs}.weight"] = weight.t()  # a vector stays as it is
        found[f"{theirs}.bias"] = ours.get(f"{name}.bias", weight.new_zeros(len(weight)))
    return finished({f"transformer.{name}": weight for name, weight in found.items()}, model)


def llama_config(model: GPT, options: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json for Llama."""
    state = model.state_dict()
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(state["tokens.weight"]),
        "max_position_embeddings": model.context_length,
        "hidden_size": options["width"],
        "intermediate_size": len(state["blocks.0.mlp.up.weight"]),
        "num_hidden_layers": options["layers"],
        "num_attention_heads": options["heads"],
        "num_key_value_heads": options["kv_heads"] or options["heads"],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": options["rope_base"]},
        "rope_theta": options["rope_base"],  # where transformers before version 5 looks for it
        "tie_word_embeddings": options["tied"],
        "bos_token_id": None,
        "eos_token_id": None,
    }


def llama_weights(model: GPT, options: Mapping[str, Any]) -> Weights:
    """The weights by Llama's names; queries, keys and values have a matrix each."""
    ours = model.state_dict()
    head = options["width"] // options["heads"]
    shared = head * (options["kv_heads"] or options["heads"])
    found = {"embed_tokens.weight": ours["tokens.weight"], "norm.weight": ours["norm.weight"]}
    for number in range(len(model.blocks)):
        for name, theirs in LLAMA_LAYERS.items():
            found[f"layers.{number}.{theirs}.weight"] = ours[f"blocks.{number}.{name}.weight"]
        matrices = ours[f"blocks.{number}.attention.qkv.weight"].split([options["width"], shared, shared])
        for letter, matrix in zip("qkv", matrices, strict=True):
            found[f"layers.{number}.self_attn.{letter}_proj.weight"] = matrix
    return finished({f"model.{name}": weight for name, weight in found.items()}, model)


def finished(weights: Weights, model: GPT) -> Weights:
    """The weights as they are saved, with those of the output layer if they are its own."""
    if model.head.weight is not model.tokens.weight:
        weights = {**weights, "lm_head.weight": model.head.weight.detach()}
    return {name: weight.clone() for name, weight in weights.items()}
