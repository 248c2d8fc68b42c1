"""Private names of other libraries are there, and take what we give them.

A release that moves or changes one fails here, with its name, instead of somewhere in the middle of a run.
"""

import ast
import inspect
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hydra.core.config_search_path import ConfigSearchPath
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

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
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    assert list(inspect.signature(getattr(_private, name)).parameters) == SIGNATURES[name]


def test_every_name_exists() -> None:
    assert all(callable(getattr(_private, name)) for name in _private.NAMES)


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


def test_submitit_executes_the_same_module_and_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What --dry-run prints is what an executor would submit."""
    from submitit import SlurmExecutor

    assert find_spec(_private.SUBMITIT_WORKER)
    monkeypatch.setattr(SlurmExecutor, "affinity", classmethod(lambda cls: 2))  # as if srun were installed
    executor = SlurmExecutor(tmp_path)
    assert f"-u -m {_private.SUBMITIT_WORKER} {tmp_path}" in executor._submitit_command_str
    options = {"time": 7, "setup": ["module load cuda"], "srun_args": ["--wait=60"], "signal_delay_s": 30}
    executor.update_parameters(**options)
    script = _private._make_sbatch_string(command="python x", folder=tmp_path, **options)
    assert script == executor._make_submission_file_text("python x", "0")
    for line in ("#SBATCH --time=7", "#SBATCH --signal=USR2@30", "module load cuda"):
        assert line in script.splitlines()
    parameters = inspect.signature(_private._make_sbatch_string).parameters
    assert {
        "map_count",
        "teardown",
        "additional_parameters",
        "stderr_to_stdout",
        "wckey",
    } <= parameters.keys()


def test_workers_are_shut_down() -> None:
    batches = iter(DataLoader(torch.arange(4), num_workers=1))
    next(batches)
    _private.worker_shutdown(batches)()
    assert not any(worker.is_alive() for worker in batches._workers)


def test_event_file_writer(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:  # type: ignore[no-untyped-call]
        parameters = inspect.signature(_private.event_file_writer(writer).add_summary).parameters
    assert list(parameters)[:2] == ["summary", "global_step"]


def test_memory_of_a_gpu_is_recorded() -> None:
    assert next(iter(inspect.signature(torch.cuda.memory._record_memory_history).parameters)) == "enabled"
    assert next(iter(inspect.signature(torch.cuda.memory._dump_snapshot).parameters)) == "filename"


def test_is_batch_or_instance_norm() -> None:
    norms = [
        nn.BatchNorm2d(1),
        nn.SyncBatchNorm(1),
        nn.InstanceNorm1d(1),
        nn.LayerNorm(1),
        nn.GroupNorm(1, 1),
    ]
    assert [isinstance(norm, _private._NormBase) for norm in norms] == [True, True, True, False, False]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = _private.nothing


@pytest.mark.parametrize("file", sorted((ROOT / "trainer/config").glob("*.py")), ids=lambda file: file.name)
def test_hydra_internals_are_imported_nowhere_else(file: Path) -> None:
    imported = [
        n.module or "" for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom)
    ]
    assert not [module for module in imported if "._" in module and not module.startswith("trainer.")]


def test_a_trial_is_reopened() -> None:
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study()
    for number in range(2):
        study.ask().report(number, step=1)
    again = _private.reopened_trial(study, 1)
    again.report(5.0, step=2)
    assert [trial.intermediate_values for trial in study.trials] == [{1: 0.0}, {1: 1.0, 2: 5.0}]


def test_timm_has_a_registry() -> None:
    timm = pytest.importorskip("timm.optim")
    assert isinstance(_private.timm_registry(), timm.OptimizerRegistry)
    assert _private.timm_registry().list_optimizers() == timm.list_optimizers()


def test_trackio_has_a_storage(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is tested with an older pillow, see .ci/run")
    storage = _private.trackio_storage(tmp_path)
    assert storage.get_project_db_path("project").parent == tmp_path
    stored = {"project", "run", "run_id", "metrics_list", "steps", "timestamps", "log_ids", "config"}
    assert stored <= inspect.signature(storage.bulk_log).parameters.keys()
    assert "run_id" in inspect.signature(storage.get_run_config).parameters
    assert "run_id" in inspect.signature(storage.get_logs).parameters
    assert storage.get_run_records("project") == []
