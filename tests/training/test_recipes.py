"""The recipes of the published table: every optimizer with every network, in quick size."""

import copy
import statistics
from itertools import product

import pytest
import torch

from tests.training.helpers import ARGS, parameters, parts_of
from trainer.checkpoint.state import random_state, set_random_state
from trainer.config.compose import compose_grid
from trainer.training.step import TrainStep

TABLE = {
    "cifar_cnn_adafisher,cifar_cnn_adam,cifar_cnn_sgd": [
        *("resnet18_cifar", "resnet50_cifar", "resnet101_cifar", "densenet121_cifar", "mobilenetv3_cifar")
    ],
    "cifar_vit_adafisherw,cifar_vit_adamw,cifar_vit_sgd": [
        *("swin_tiny_cifar", "focalnet_tiny_cifar", "cct2_cifar")
    ],
}
EPOCHS = {
    **dict.fromkeys(("adafisher", "adafisherw", "sgd"), 200),
    "adam": 210,
    "adamw": 210,
    "adahessian": 89,
    "kfac": 107,
    "shampoo": 36,
}
"""Those that take the time of AdaFisher's 200, as published."""
CELLS = [cell for recipes, models in TABLE.items() for cell in product(recipes.split(","), models)]
SAMPLE = [("cifar_cnn_adafisher", "resnet18_cifar"), ("cifar_vit_adamw", "cct2_cifar")]
DEAR = {
    f"cifar_{family}_adahessian,cifar_{family}_kfac,cifar_{family}_shampoo": models
    for family, models in zip(("cnn", "vit"), TABLE.values(), strict=True)
}
"""Recipes of which only `DEAR_SAMPLE` trains here: Shampoo takes two seconds a step of a transformer."""
DEAR_SAMPLE = [
    *(("cifar_cnn_kfac", "resnet18_cifar"), ("cifar_cnn_adahessian", "mobilenetv3_cifar")),
    *(("cifar_vit_kfac", "focalnet_tiny_cifar"), ("cifar_vit_shampoo", "cct2_cifar")),
    *(("cifar_vit_adahessian", "cct2_cifar"), ("cifar_cnn_shampoo", "resnet18_cifar")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("recipes", "models"), [*TABLE.items(), *DEAR.items()])
def test_every_cell_composes(recipes: str, models: list[str]) -> None:
    points = compose_grid(ARGS, [f"experiment={recipes}", f"model={','.join(models)}"])
    assert len(points) == len(recipes.split(",")) * len(models)
    for point in points:
        config = point.config
        assert (config.data["name"], config.data["cutout"], config.schedule["name"]) == (
            "cifar10",
            16,
            "cosine",
        )
        assert config.loop.max_epochs == EPOCHS[config.optimizer["name"]]


def learns(recipe: str, model: str) -> None:
    parts = parts_of(f"experiment={recipe}", f"model={model}", "quick=images")
    step, losses = TrainStep(parts), []
    for _ in range(20):
        step()
        losses.append((parts.state.window[0] / parts.state.window[-1]).item())
        parts.state.window = None
    assert statistics.mean(losses[-5:]) < statistics.mean(losses[:5])


@pytest.mark.parametrize(("recipe", "model"), SAMPLE)
def test_a_sample_learns_in_quick_size(recipe: str, model: str) -> None:
    learns(recipe, model)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "model"), [*(cell for cell in CELLS if cell not in SAMPLE), *DEAR_SAMPLE])
def test_every_cell_but_dear_ones_learns_in_quick_size(recipe: str, model: str) -> None:
    learns(recipe, model)


def test_the_network_for_tiny_imagenet_is_small_in_quick_size() -> None:
    parts = parts_of("experiment=cifar_vit_adamw", "model=swin_base_cifar", "quick=images")
    assert sum(p.numel() for p in parts.model.parameters()) < 3e6


def test_dropout_and_stochastic_depth_resume_exactly() -> None:
    whole, half = (
        parts_of("experiment=cifar_vit_adafisherw", "model=cct2_cifar", "quick=images") for _ in range(2)
    )
    step = TrainStep(whole)
    for number in range(8):
        if number == 4:
            saved = copy.deepcopy((whole.state.tensors(), whole.state.values(), random_state()))
        step()
    half.state.load(*saved[:2])
    set_random_state(saved[2])
    step = TrainStep(half)
    for _ in range(4):
        step()
    assert all(map(torch.equal, parameters(whole), parameters(half)))
