"""The parts of runs in float64, and what is compared of them."""

from argparse import Namespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from trainer.config.compose import compose, hydra_session, resolve
from trainer.config.plugins import load_plugins
from trainer.config.schema import Config
from trainer.data import Batch
from trainer.data.base import Split
from trainer.distributed.dtensor import full_tensor
from trainer.distributed.ranks import SINGLE_PROCESS, Ranks
from trainer.training.build import build
from trainer.training.evaluation import evaluate
from trainer.training.parts import RunParts
from trainer.training.step import TrainStep

ARGS = Namespace(config_path=None, config_dir=None, config_name=None, overrides=[])
PLUGINS = ["plugins=[tests.distributed.models]"]


class Wide(Split):
    """A split whose images are float64."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: Tensor, key: int | None) -> Batch:
        inputs, targets = self.split.batch(indices, key)
        return inputs.double() if inputs.is_floating_point() else inputs, targets


def parts_of(ranks: Ranks, *overrides: str, dtype: torch.dtype = torch.float64) -> RunParts:
    """The parts of a run that the command line describes."""
    return parts_from(config_of(*overrides), ranks, dtype)


def config_of(*overrides: str) -> Config:
    """The config that the command line describes, with the models of `tests.distributed.models`."""
    load_plugins(PLUGINS)
    with hydra_session(ARGS) as session:
        return resolve(compose(session, ARGS, [*PLUGINS, *overrides]))


def parts_from(config: Config, ranks: Ranks = SINGLE_PROCESS, dtype: torch.dtype = torch.float64) -> RunParts:
    """The parts of a run, whose parameters and images are of the dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        parts = build(config, ranks)
    finally:
        torch.set_default_dtype(before)
    if dtype == torch.float64:
        parts.state.loader.split = Wide(parts.state.loader.split)
        for name, split in parts.data.evals.items():
            parts.data.evals[name] = Wide(split)
    return parts


def steps(parts: RunParts, count: int) -> RunParts:
    train_step = TrainStep(parts)
    for _ in range(count):
        train_step()
    return parts


def outcome(parts: RunParts) -> dict[str, Any]:
    """All that should not depend on the number of ranks."""
    metrics = evaluate(parts)
    tensors = parts.state.tensors()
    return {
        "model": gathered(tensors["model"]),
        "optimizer": gathered(tensors["optimizer"]["state"]),
        "ema": gathered(tensors.get("ema", {})),
        "metrics": metrics,
        "window": parts.state.window,
        "norm": parts.counters.grad_norm,
    }


def gathered(tree: Any) -> Any:
    """The same with tensors whole and detached from everything."""
    return tree_map(
        lambda leaf: full_tensor(leaf.detach()).clone() if isinstance(leaf, Tensor) else leaf, tree
    )


def assert_same(one: Any, other: Any, tolerance: float = 1e-9, where: str = "") -> None:
    """Two nested structures are equal to a relative and absolute tolerance."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], tolerance, f"{where}/{key}")
    elif isinstance(one, Tensor):
        torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance, msg=lambda m: f"{where}: {m}")
    elif isinstance(one, float):
        assert abs(one - other) <= tolerance * max(1.0, abs(one)), f"{where}: {other} instead of {one}"
    else:
        assert one == other, where
