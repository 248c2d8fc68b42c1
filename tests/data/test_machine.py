"""What a rank may take of its machine, by what its launcher says."""

import os

import pytest
import torch

from trainer.data import LoaderOptions, base, loader, machine

NAMES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "SLURM_CPUS_PER_TASK",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_NUM_NODES",
)


@pytest.mark.parametrize(
    ("environment", "cores", "workers"),
    [
        ({}, 6, 6),
        ({}, 64, machine.MOST_WORKERS),
        ({"RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, 16, 4),
        ({"RANK": "1", "WORLD_SIZE": "4"}, 2, 1),
        ({"SLURM_CPUS_PER_TASK": "3"}, 16, 3),
        ({"SLURM_CPUS_PER_TASK": "16", "RANK": "0", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, 16, 2),
    ],
)
def test_workers_are_no_more_than_a_ranks_cores(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], cores: int, workers: int
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(machine, "available_cores", lambda: cores)
    before = dict(os.environ)
    assert machine.auto_workers() == workers
    assert dict(os.environ) == before


def test_auto_starts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lazy(base.LazySplit):
        device = torch.device("cpu")

        def __len__(self) -> int:
            return 4

        read = finish = None

    started: list[int] = []
    monkeypatch.setattr(loader, "auto_workers", lambda: 3)
    monkeypatch.setattr(loader, "read_ahead", lambda split, plans, number: iter([started.append(number)]))
    Lazy.__abstractmethods__ = frozenset()
    list(loader.fetch(Lazy(), [], LoaderOptions(num_workers="auto")))
    assert started == [3]


def test_memory_is_shared_by_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = machine.free_memory(torch.device("cpu"))
    if alone is None:
        pytest.skip("this system does not say")
    monkeypatch.setattr(machine, "ranks_here", lambda: 4)
    assert machine.free_memory(torch.device("cpu")) == pytest.approx(alone / 4, rel=0.2)
