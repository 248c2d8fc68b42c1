"""Private names of other libraries are there, and take what we give them.

A release that moves or changes one fails here, with its name, instead of somewhere in the middle of a run.
"""

import ast
import inspect
from pathlib import Path

import pytest
import torch
from hydra.core.config_search_path import ConfigSearchPath
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from trainer import _private
from trainer.config.command_line import parse_overrides

ROOT = Path(__file__).parents[1]

SIGNATURES = {
    # hydra
    "Hydra": ["task_name", "config_loader"],
    "ConfigLoaderImpl": ["config_search_path"],
    "BasicSweeper": ["max_batch_size", "params"],
    "create_config_search_path": ["search_path_dir"],
    "get_args_parser": [],
    # torch
    "_adjust_lr": ["lr", "adjust_lr_fn", "param_shape"],
    "_zeropower_via_newtonschulz": ["grad", "ns_coefficients", "ns_steps", "eps"],
}


@pytest.mark.parametrize("name", _private.NAMES)
def test_signatures(name: str) -> None:
    assert list(inspect.signature(getattr(_private, name)).parameters) == SIGNATURES[name]


def test_hydra_methods() -> None:
    assert list(inspect.signature(_private.Hydra.create_main_hydra2).parameters) == [
        "task_name",
        "config_search_path",
    ]
    assert {"config_name", "overrides", "run_mode"} <= inspect.signature(
        _private.Hydra.compose_config
    ).parameters.keys()
    assert isinstance(_private.create_config_search_path(str(ROOT / "conf")), ConfigSearchPath)


def test_a_grid_is_split() -> None:
    overrides = parse_overrides(["a=1,2", "b=range(2)", "c=[1,2]"])
    (points,) = _private.BasicSweeper.split_arguments(overrides, max_batch_size=None)
    assert points == [[f"a={a}", f"b={b}", "c=[1,2]"] for a in (1, 2) for b in (0, 1)]


def test_values_are_set_in_a_composed_config() -> None:
    config = OmegaConf.create({"loop": {"steps": 1, "clip": None}})
    _private.apply_overrides(parse_overrides(["loop.steps=7", "loop.clip=1e-3"]), config)
    assert config == {"loop": {"steps": 7, "clip": 1e-3}}


def test_workers_are_shut_down() -> None:
    batches = iter(DataLoader(torch.arange(4), num_workers=1))
    next(batches)
    _private.worker_shutdown(batches)()
    assert not any(worker.is_alive() for worker in batches._workers)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = _private.nothing


@pytest.mark.parametrize("file", sorted((ROOT / "trainer/config").glob("*.py")), ids=lambda file: file.name)
def test_hydra_internals_are_imported_nowhere_else(file: Path) -> None:
    imported = [
        n.module or "" for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom)
    ]
    assert not [module for module in imported if "._" in module and not module.startswith("trainer.")]
