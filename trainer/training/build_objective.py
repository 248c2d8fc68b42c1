"""From a config to the objective: chosen, built, given the networks that it learns from, and tried on two samples."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.checkpoint.storage import find_checkpoints
from trainer.checkpoint.weights import load_weights
from trainer.config.schema import Config
from trainer.data import Data
from trainer.errors import ConfigError, nearest, one_line_errors
from trainer.models import MODELS
from trainer.models.pretrained import replaced_weights
from trainer.objectives import OBJECTIVES, Objective, default_objective
from trainer.objectives.base import DEFAULTS
from trainer.rundir.files import CONFIG
from trainer.rundir.frozen_config import read_frozen
from trainer.training.build_model import build_model, initialize_lazy_layers

OF_LOOP = ("label_smoothing", "loss_chunks")
"""Options of objectives that are those of ``loop`` where they are null."""

SAMPLES = 2
"""On which an objective is tried: a loss may compare samples with each other."""


def build_objective(config: Config, model: nn.Module, data: Data, device: torch.device) -> Objective:
    """The objective of a run, with the networks that it needs on the device.

    Args:
        config: of the run.
        model: on the CPU still.
        data: what it is trained on.
        device: of this rank.

    Raises:
        UserError: it does not fit the model or the data, or another run that it needs cannot be read.
    """
    objective: Objective = OBJECTIVES.build(objective_config(config))
    networks = []

    def network_of(path: str) -> nn.Module:
        networks.append(load_network(path, config, data))
        return networks[-1]

    objective.attach(network_of)
    if config.objective["name"] != "auto" or model_tag(config) not in DEFAULTS:
        try_objective(objective, model, data, config)
    for network in networks:
        network.to(device)
    return objective


def objective_config(config: Config) -> dict[str, Any]:
    """The name and all options of the objective that a run minimises.

    Raises:
        ConfigError: the model is registered with an unknown one, or an option of ``loop`` does not fit it.
    """
    model, tag = config.model["name"], model_tag(config)
    chosen = dict(config.objective)
    if chosen["name"] == "auto":
        if tag not in DEFAULTS and tag not in OBJECTIVES:
            known = nearest(tag, {*DEFAULTS, *OBJECTIVES.names()} - {"auto"})
            raise ConfigError(f"model={model} is registered with an unknown objective={tag}{known}")
        chosen = default_objective(tag)
    for option in OF_LOOP:
        value = getattr(config.loop, option)
        if option in chosen and chosen[option] is None:
            chosen[option] = value
        elif option not in chosen and option == "label_smoothing" and value:
            raise ConfigError(
                f"loop.{option}={value} does not work with objective={chosen['name']}, which has none: leave it at 0"
            )
    chunks = chosen.get("loss_chunks", config.loop.loss_chunks)
    if chunks != 1 and not ("loss_chunks" in chosen and MODELS.get(model).tags.get("pieces")):
        group = "loop" if config.objective.get("loss_chunks") is None else "objective"
        raise ConfigError(
            f"{group}.loss_chunks={chunks} does not work with model={model}, which makes all its outputs "
            "at once: leave it at 1"
        )
    return chosen


def model_tag(config: Config) -> str:
    """What the model is registered to learn."""
    tag: str = MODELS.get(config.model["name"]).tags.get("objective", "classification")
    return tag


def try_objective(objective: Objective, model: nn.Module, data: Data, config: Config) -> None:
    """Computes the loss and the metrics of a few samples, so that what does not fit shows before anything is written.

    Raises:
        ConfigError: the objective fails, or does not give what `Objective` says.
    """
    chosen = f"objective={objective_config(config)['name']}"
    where = f"with model={config.model['name']} and data={config.data['name']}"
    inputs, targets = data.train.batch(torch.arange(min(SAMPLES, len(data.train))), None)
    modules = type(objective).__module__, MODELS.get(config.model["name"]).target.__module__
    with (
        one_line_errors(f"{chosen} does not work {where}", *modules),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
    ):
        loss, totals = objective.loss(model.eval(), (inputs.cpu(), targets.cpu()))
        metrics = objective.metrics(totals)
    if loss.dim() or totals.dim() != 1 or not totals.is_floating_point():
        raise ConfigError(
            f"{chosen} must give a scalar loss and floats [n], not {loss.shape} and {totals.shape}"
        )
    for name in ("loss", objective.primary):
        if name not in metrics:
            raise ConfigError(f"{chosen} has no metric {name}{nearest(name, metrics)}")


def load_network(path: str, config: Config, data: Data) -> nn.Module:
    """The trained network of another run, on the CPU, in eval mode and frozen: weights alone, no code of that run's.

    Args:
        path: of the run or of one of its checkpoints.
        config: of this run; that one's has the model.
        data: which says what the model's options leave open.

    Raises:
        UserError: it is no run, or its network does not fit the data or is of a plugin that is not named here.
    """
    option = next(
        (f"objective.{key}=" for key, value in config.objective.items() if value == path), "objective: "
    )
    checkpoint = find_checkpoints(Path(path), option)[0]
    values = read_frozen(checkpoint.absolute().parent.parent / CONFIG)
    with torch.random.fork_rng(devices=[]), replaced_weights():
        network = build_model(replace(config, model=MODELS.check(values.get("model") or {})), data)
        initialize_lazy_layers(network, data)
    load_weights(option, str(checkpoint), network, strict=True)
    return network.eval().requires_grad_(False)
