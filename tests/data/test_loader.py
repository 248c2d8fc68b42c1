import math
import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.forks import FORKS
from trainer.data import LazySplit, LoaderOptions, TrainLoader, eval_batches
from trainer.data.images import Augmentation, MemoryImages
from trainer.errors import ConfigError, DataError

CPU = torch.device("cpu")


class Lazy(LazySplit):
    """Reads in the worker, finishes on the device; a sample's value is its number and what the key gives."""

    device = CPU

    def __init__(self, samples: int, broken: int | None = None) -> None:
        self.samples = samples
        self.broken = broken

    def __len__(self) -> int:
        return self.samples

    def read(self, indices: Tensor, key: int | None) -> tuple[Tensor, Tensor]:
        if self.broken in indices.tolist():
            raise DataError(f"sample {self.broken} is broken")
        noise = 0 if key is None else key % 1000
        return indices * 1000 + noise, indices

    def finish(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return inputs * 2, targets


@pytest.fixture
def images() -> MemoryImages:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (50, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return MemoryImages(
        pixels,
        torch.arange(50),
        scale=[0.01] * 3,
        shift=[0.5] * 3,
        device=CPU,
        augmentation=Augmentation(crop_padding=2, flip=True, cutout=3),
    )


def take(loader: TrainLoader, batches: int) -> tuple[Tensor, Tensor]:
    parts = [part for _ in range(batches) for part in loader.next_batch()]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def equal(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_every_epoch_is_another_permutation_without_the_incomplete_batch(images):
    loader = TrainLoader(images, LoaderOptions(batch_size=12), seed=1)
    assert loader.batches_per_epoch == 4
    epochs = [take(loader, 4)[1] for _ in range(3)]
    for epoch in epochs:
        assert len(epoch.unique()) == 48
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])
    assert loader.state_dict() == {"epoch": 3, "batch": 0}


@pytest.mark.parametrize(
    ("world_size", "micro_batches", "sizes"), [(1, 1, [12] * 4 + [2]), (2, 1, [6] * 4 + [1]), (2, 3, [2] * 4)]
)
def test_the_short_last_batch_is_kept_on_demand(images, world_size, micro_batches, sizes):
    """Of its 2 samples, what does not divide into ranks and micro-batches is left out."""
    kept, dropped = (
        [
            TrainLoader(
                images,
                LoaderOptions(batch_size=12, drop_last=drop_last),
                seed=1,
                rank=rank,
                world_size=world_size,
                micro_batches=micro_batches,
            )
            for rank in range(world_size)
        ]
        for drop_last in (False, True)
    )
    seen = []
    for epoch in range(2):
        for number, size in enumerate(sizes):
            assert {(loader.epoch, loader.batch) for loader in kept} == {(epoch, number)}
            batches = [batch for loader in kept for batch in loader.next_batch()]
            assert [len(targets) for _, targets in batches] == [size] * world_size * micro_batches
            seen += [targets for _, targets in batches] if epoch == 0 else []
            if number < 4:
                others = [batch for loader in dropped for batch in loader.next_batch()]
                assert all(equal(*pair) for pair in zip(batches, others, strict=True))
    assert len(torch.cat(seen).unique()) == sum(sizes) * world_size * micro_batches


def test_seeds_differ(images):
    one, other = (take(TrainLoader(images, LoaderOptions(batch_size=12), seed=seed), 1) for seed in (1, 2))
    assert not torch.equal(one[1], other[1])


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_world_size_and_micro_batches_change_nothing(images, world_size, micro_batches):
    whole = TrainLoader(images, LoaderOptions(batch_size=12), seed=7)
    ranks = [
        TrainLoader(
            images,
            LoaderOptions(batch_size=12),
            seed=7,
            rank=r,
            world_size=world_size,
            micro_batches=micro_batches,
        )
        for r in range(world_size)
    ]
    for _ in range(9):  # more than two epochs
        expected = take(whole, 1)
        shares = [rank.next_batch() for rank in ranks]
        assert all(len(share) == micro_batches for share in shares)
        parts = [part for share in shares for part in share]
        assert {len(y) for _, y in parts} == {12 // world_size // micro_batches}
        assert equal((torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])), expected)


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 6])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_anywhere_is_exact(stop, num_workers):
    split = Lazy(50)
    uninterrupted = take(TrainLoader(split, LoaderOptions(batch_size=12), seed=3, micro_batches=2), 9)
    first = TrainLoader(split, LoaderOptions(batch_size=12, num_workers=num_workers), seed=3, micro_batches=2)
    before = [take(first, stop)] if stop else []
    state = first.state_dict()
    first.close()
    second = TrainLoader(
        split, LoaderOptions(batch_size=12, num_workers=num_workers), seed=3, micro_batches=2
    )
    second.load_state_dict(state)
    parts = [*before, take(second, 9 - stop)]
    second.close()
    assert equal((torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])), uninterrupted)


def test_resuming_reads_nothing_over(images, monkeypatch):
    loader = TrainLoader(images, LoaderOptions(batch_size=12), seed=3)
    expected = [take(loader, 1) for _ in range(7)][-1]
    asked = []
    original = images.batch
    monkeypatch.setattr(
        images, "batch", lambda indices, key: asked.append(len(indices)) or original(indices, key)
    )
    resumed = TrainLoader(images, LoaderOptions(batch_size=12), seed=3)
    resumed.load_state_dict({"epoch": 1, "batch": 2})
    assert equal(take(resumed, 1), expected)
    assert asked == [12]


def test_a_used_loader_can_go_back(images):
    loader = TrainLoader(images, LoaderOptions(batch_size=12), seed=3)
    expected = take(loader, 5)
    loader.load_state_dict({"epoch": 0, "batch": 0})
    assert equal(take(loader, 5), expected)


def test_workers_give_the_same_batches():
    def epoch(num_workers: int) -> tuple[Tensor, Tensor]:
        loader = TrainLoader(
            Lazy(20), LoaderOptions(batch_size=4, num_workers=num_workers), seed=0, micro_batches=2
        )
        batches = take(loader, 8)
        loader.close()
        return batches

    assert equal(epoch(0), epoch(2))
    alone, shared = (
        list(eval_batches(Lazy(20), LoaderOptions(eval_batch_size=8, num_workers=workers)))
        for workers in (0, 2)
    )
    assert all(equal(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.slow
def test_a_program_that_forgets_its_loader_ends():
    script = """
from tests.data.test_loader import Lazy, LoaderOptions, TrainLoader, eval_batches
loader = TrainLoader(Lazy(400), LoaderOptions(batch_size=4, num_workers=1), seed=0)
loader.next_batch()
batches = eval_batches(Lazy(400), LoaderOptions(eval_batch_size=4, num_workers=1))
next(batches)
raise SystemExit(3)
"""
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, timeout=60).returncode == 3


def test_workers_outlive_the_signals_that_stop_a_run():
    loader = TrainLoader(Lazy(400), LoaderOptions(batch_size=4, num_workers=2), seed=0)
    loader.next_batch()
    for worker in multiprocessing.active_children():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(worker.pid, number)
    for _ in range(20):
        loader.next_batch()
    loader.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_global_generator_is_left_alone(images, num_workers):
    before = torch.get_rng_state()
    take(TrainLoader(images, LoaderOptions(batch_size=10), seed=0), 7)
    take(TrainLoader(Lazy(20), LoaderOptions(batch_size=10, num_workers=num_workers), seed=0), 3)
    list(eval_batches(Lazy(20), LoaderOptions(eval_batch_size=8, num_workers=num_workers)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_data_error_of_a_worker_stays_one_line(num_workers):
    with pytest.raises(DataError) as error:
        list(eval_batches(Lazy(20, broken=13), LoaderOptions(eval_batch_size=8, num_workers=num_workers)))
    assert str(error.value) == "sample 13 is broken"


@pytest.mark.parametrize(("samples", "batch_size"), [(50, 16), (50, 50), (50, 64), (7, 3), (16, 4), (5, 4)])
@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_evaluation_sees_each_sample_once_in_order(samples, batch_size, world_size):
    split = Lazy(samples)
    ranks = [
        list(eval_batches(split, LoaderOptions(eval_batch_size=batch_size), r, world_size))
        for r in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1  # all ranks take as many steps
    steps = list(zip(*ranks, strict=True))
    seen = torch.cat([y for step in steps for _, y in step])
    assert torch.equal(seen, torch.arange(samples))
    sizes = [len(y) for step in steps for _, y in step]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(math.ceil(batch_size / world_size), 2)


def test_evaluation_is_not_augmented(images):
    (inputs, targets), *_ = eval_batches(images, LoaderOptions(eval_batch_size=10))
    assert torch.allclose(inputs, images.padded[:10, :, 2:-2, 2:-2] * 0.01 + 0.5)
    assert torch.equal(targets, torch.arange(10))


@pytest.mark.parametrize(
    ("batch_size", "split_up", "message"),
    [
        (51, {}, "data.batch_size=51 exceeds the training set: at most 50"),
        (
            16,
            {"world_size": 2, "micro_batches": 3},
            "data.batch_size=16 does not divide into 2 ranks x 3 micro-batches: "
            "take a multiple of 6, such as 12, or loop.accumulate=1",
        ),
        (
            16,
            {"world_size": 8, "micro_batches": 4},
            "data.batch_size=16 does not divide into 8 ranks x 4 micro-batches: "
            "take a multiple of 32, such as 32, or loop.accumulate=2",
        ),
        (
            4,
            {"world_size": 8},
            "data.batch_size=4 does not divide into 8 ranks x 1 micro-batches: "
            "take a multiple of 8, such as 8",
        ),
    ],
)
def test_batch_sizes_that_do_not_fit(images, batch_size, split_up, message):
    with pytest.raises(ConfigError) as error:
        TrainLoader(images, LoaderOptions(batch_size=batch_size), seed=0, **split_up)
    assert str(error.value) == message


def parents_of_workers(connection: Connection) -> None:
    loader = TrainLoader(Lazy(400), LoaderOptions(batch_size=4, num_workers=2), seed=0)
    loader.next_batch()
    workers = [Path(f"/proc/{worker.pid}/stat") for worker in multiprocessing.active_children()]
    connection.send([int(worker.read_text().rpartition(")")[2].split()[1]) for worker in workers])
    loader.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_workers_are_children_of_the_run():
    """In a process from a fork server, too, as a run of a comparison is: others would outlive it when it is killed."""
    ours, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=parents_of_workers, args=(theirs,))
    process.start()
    assert ours.recv() == [process.pid] * 2
    process.join()
