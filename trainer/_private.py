"""Private names of other libraries, all in one place, each with the reason why a public one does not do.

They may change with any release: pyproject.toml bounds the versions, tests/test_private.py checks names and signatures.
A name is imported when it is first asked for, so that a command that needs no torch starts without it.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = {
    # hydra
    "Hydra": "hydra._internal.hydra",  # hydra.compose leaves out Hydra's own node, which names the run directory
    "ConfigLoaderImpl": "hydra._internal.config_loader_impl",  # sets values in a config that is composed already
    "BasicSweeper": "hydra._internal.core_plugins.basic_sweeper",  # the points of a grid, before they run
    "create_config_search_path": "hydra._internal.utils",  # a search path to which --config-dir is prepended
    "get_args_parser": "hydra._internal.utils",  # Hydra's flags; hydra.main prints its usage on a mistake and exits
    # submitit
    "_make_sbatch_string": "submitit.slurm.slurm",  # the job script, which an executor writes only to submit it
    # torch
    "_adjust_lr": "torch.optim._muon",  # torch.optim.Muon takes no convolutions
    "_disable_dynamo": "torch",  # torch.compiler.disable imports the compiler, which takes a second
    "_BatchNorm": "torch.nn.modules.batchnorm",  # the base of batch norms, which has no public name
    "_NormBase": "torch.nn.modules.batchnorm",  # the base of batch and instance norms, which has no public name
    # tensorboard
    "_AsyncWriterThread": "tensorboard.summary.writer.event_file_writer",  # Python prints what it raises
}
"""The module of each name."""


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(NAMES[name]), name)


# hydra


def apply_overrides(overrides: list[Any], config: Any) -> None:
    """Sets the values of parsed overrides in a composed config.

    The public way, composing the config again, takes 0.2 s for each point of a grid.
    """
    __getattr__("ConfigLoaderImpl")._apply_overrides_to_config(overrides, config)


# submitit

SUBMITIT_WORKER = "submitit.core._submit"
"""The module that a job executes in each task; an executor names it only in the script that it submits."""

# torch


def worker_shutdown(batches: Any) -> Callable[[], None]:
    """Returns what ends the worker processes of a DataLoader's iterator, which otherwise only its deletion does."""
    shutdown: Callable[[], None] = batches._shutdown_workers
    return shutdown


def worker_processes(batches: Any) -> list[Any]:
    """Returns the worker processes of a DataLoader's iterator, of which one may have been killed."""
    workers: list[Any] = batches._workers
    return workers


def event_file_writer(writer: Any) -> Any:
    """Returns what writes a SummaryWriter's events: data of a plugin cannot be added in another way."""
    return writer._get_file_writer()


def record_cuda_memory(on: bool) -> None:
    """Has torch record every allocation on GPUs from now on, with where it was asked for, or no more."""
    importlib.import_module("torch.cuda.memory")._record_memory_history("all" if on else None)


def write_cuda_memory(path: Path) -> None:
    """Writes what was recorded as https://pytorch.org/memory_viz reads it: torch has no public function for either."""
    importlib.import_module("torch.cuda.memory")._dump_snapshot(str(path))


# timm


def timm_registry() -> Any:
    """Returns the registry of timm's optimizers: timm exports functions that read it, but none that adds to it."""
    return importlib.import_module("timm.optim._optim_factory").default_registry


# optuna


def reopened_trial(study: Any, number: int) -> Any:
    """Returns an unfinished trial of a study: Optuna hands it out only once, when it makes it."""
    storage = study._storage
    trial = importlib.import_module("optuna.trial").Trial
    return trial(study, storage.get_trial_id_from_study_id_trial_number(study._study_id, number))


# trackio


def trackio_storage(folder: Path) -> Any:
    """Returns trackio's storage with that folder, which it reads from TRACKIO_DIR only once, when it is imported.

    trackio.init asks a server for the user's name, turns each error into a warning, stores when it wants to, and finds
    a run by its name alone; trackio.Api reads no metrics.
    """
    module = importlib.import_module("trackio.sqlite_storage")
    module.TRACKIO_DIR = folder  # type: ignore[attr-defined]
    return module.SQLiteStorage
