"""The private parts of other packages that are used still have the names, arguments and results that we rely on."""

import inspect
import multiprocessing
from importlib.util import find_spec
from pathlib import Path

from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from trainer import _private


def test_unflatten_state_dict() -> None:
    paths = {"a.b": ("a", "b"), "c": ("c",)}
    assert _private.unflatten_state_dict({"a.b": 1, "c": 2}, paths) == {"a": {"b": 1}, "c": 2}


def test_tree_map() -> None:
    tree = {"a": [1, (2, 3)], "b": 4}
    assert _private.tree_map(lambda leaf: 10 * leaf, tree) == {"a": [10, (20, 30)], "b": 40}


def test_worker_shutdown() -> None:
    batches = iter(DataLoader(range(8), num_workers=1))  # type: ignore[arg-type]
    next(batches)
    [worker] = multiprocessing.active_children()
    _private.worker_shutdown(batches)()
    worker.join(10)
    assert worker.exitcode == 0


def test_event_file_writer(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:  # type: ignore[no-untyped-call]
        parameters = inspect.signature(_private.event_file_writer(writer).add_summary).parameters
    assert list(parameters)[:2] == ["summary", "global_step"]


def test_is_batch_or_instance_norm() -> None:
    norms = [
        nn.BatchNorm2d(1),
        nn.SyncBatchNorm(1),
        nn.InstanceNorm1d(1),
        nn.LayerNorm(1),
        nn.GroupNorm(1, 1),
    ]
    assert [_private.is_batch_or_instance_norm(norm) for norm in norms] == [True, True, True, False, False]


def test_submitit_worker() -> None:
    assert find_spec(_private.SUBMITIT_WORKER) is not None


def test_sbatch_script(tmp_path: Path) -> None:
    script = _private.sbatch_script("true", tmp_path, {"job_name": "name", "map_count": 3})
    assert script.startswith("#!/bin/bash\n")
    assert "#SBATCH --job-name=name\n" in script
    assert "#SBATCH --array=0-2" in script
