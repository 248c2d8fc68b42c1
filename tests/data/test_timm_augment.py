"""timm's augmentation: the same whoever asks for it, and that of timm."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.pictures import cats_and_dogs
from trainer.data import DATA, Data, LoaderOptions, TrainLoader
from trainer.data.random import mix
from trainer.data.timm_augment import Mixing, seed_generators
from trainer.errors import ConfigError

timm_data = pytest.importorskip("timm.data")

ALL = {
    "augment": "timm",
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.5,
    "mixup": 0.8,
    "cutmix": 1.0,
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return cats_and_dogs(tmp_path / "pictures", train=8, val=2)


def build(root: Path, **options: object) -> Data:
    config = {"name": "image_folder", "root": str(root), "image_size": 16, "resize": 20, **options}
    return DATA.build(DATA.check(config), torch.device("cpu"), 0)


def test_a_picture_is_changed_as_timm_does(pictures: Path) -> None:
    data = build(pictures, augment="timm", auto_augment="rand-m9", random_erasing=0.9)
    change = timm_data.create_transform(
        16, is_training=True, auto_augment="rand-m9", re_prob=0.9, re_mode="pixel", interpolation="random"
    )
    from PIL import Image

    picture = Image.open(pictures / "train" / "cat" / "1.jpg")
    for key in range(5):
        seed_generators(mix(key, 1))
        torch.testing.assert_close(data.train.batch(torch.tensor([1]), key)[0][0], change(picture))


def test_workers_ranks_micro_batches_and_resuming_change_nothing(pictures: Path) -> None:
    data = build(pictures, **ALL)
    options = LoaderOptions(batch_size=8)
    loader = TrainLoader(data.train, options, seed=1)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    expected = [loader.next_batch()[0] for _ in range(5)]
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])

    random.seed(3)
    workers = TrainLoader(data.train, LoaderOptions(batch_size=8, num_workers=2), seed=1, micro_batches=2)
    workers.load_state_dict({"epoch": 0, "batch": 1})
    ranks = [TrainLoader(data.train, options, seed=1, rank=r, world_size=2, micro_batches=2) for r in (0, 1)]
    for rank in ranks:
        rank.load_state_dict({"epoch": 1, "batch": 0})
    for number, (inputs, shares) in enumerate(expected):
        for others in ([workers] if number >= 1 else []), (ranks if number >= 2 else []):
            parts = [part for other in others for part in other.next_batch()]
            if parts:
                assert torch.equal(torch.cat([x for x, _ in parts]), inputs)
                assert torch.equal(torch.cat([y for _, y in parts]), shares)
    workers.close()
    other = TrainLoader(data.train, options, seed=2).next_batch()[0]
    assert not torch.equal(other[0], expected[0][0])


@pytest.mark.parametrize(
    "options", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "cache": "memory"}]
)
def test_shares_are_those_of_the_pictures(pictures: Path, options: dict[str, object]) -> None:
    mixed, plain = (
        build(pictures, normalize=False, **options),
        build(pictures, normalize=False, cache=options.get("cache", "none")),
    )
    indices = torch.tensor([0, 9, 3, 12, 8, 1])  # pairs of both classes
    inputs, shares = mixed.train.batch(indices, 4)
    images, labels = plain.train.batch(indices, 4)
    assert shares.shape == (6, 2)
    torch.testing.assert_close(shares.sum(1), torch.ones(6))
    for number, (image, share) in enumerate(zip(inputs, shares, strict=True)):
        own, other = images[number], images[number ^ 1]
        part = share[labels[number]]  # of its own class
        if torch.equal(labels[number], labels[number ^ 1]):
            continue
        is_cut = ((image == own) | (image == other)).all()
        if is_cut:
            assert (image == own).all(0).float().mean().item() == pytest.approx(part.item(), abs=1e-3)
        else:
            torch.testing.assert_close(image, part * own + (1 - part) * other)
    targets = mixed.evals["test"].batch(torch.arange(4), None)[1]
    assert targets.tolist() == [0, 0, 1, 1]


def test_a_batch_must_consist_of_pairs(pictures: Path) -> None:
    data = build(pictures, mixup=0.2)
    with pytest.raises(
        ConfigError, match=r"data.batch_size=9 does not .* samples in groups of 2: take a multiple of 2"
    ):
        TrainLoader(data.train, LoaderOptions(batch_size=9), seed=0)
    loader = TrainLoader(data.train, LoaderOptions(batch_size=6, drop_last=False), seed=0)
    assert [len(loader.next_batch()[0][0]) for _ in range(3)] == [6, 6, 4]


def test_mixing_both_gives_each_pair_one() -> None:
    inputs = torch.cat([torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)]).repeat(100, 1, 1, 1)
    mixed, _ = Mixing(1.0, 1.0, 2)(inputs, torch.tensor([0, 1]).repeat(100), [mix(n) for n in range(100)])
    cut = ((mixed == 0) | (mixed == 1)).all(3).all(2).all(1)[::2]
    assert 30 <= cut.sum() <= 70


def test_mistakes(pictures: Path) -> None:
    for name, value in (("auto_augment", "rand-m9"), ("random_erasing", 0.2)):
        with pytest.raises(ConfigError, match=rf"data.{name}={value} is timm's: add data.augment=timm"):
            build(pictures, **{name: value})
    for policy in ("rnd-m9", "rand-x9"):
        with pytest.raises(
            ConfigError, match=rf"data.auto_augment={policy} is not understood by timm \(.*such as"
        ) as e:
            build(pictures, augment="timm", auto_augment=policy)
        assert "\n" not in str(e.value)
