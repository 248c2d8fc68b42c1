"""data.cache=memory: the pictures of the folder, and torchvision's augmentation in whole batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.data.pictures import cats_and_dogs, write
from trainer.data import DATA, Data, LoaderOptions, TrainLoader, cached_images, hold_out
from trainer.data.cached_images import draw_crops, resized_crops
from trainer.data.crops import Crops
from trainer.data.finish import Finish
from trainer.errors import ConfigError, DataError


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return cats_and_dogs(tmp_path / "pictures", train=6, val=3)


def build(**options: object) -> Data:
    config = {"name": "image_folder", "image_size": 16, "resize": 20, **options}
    return DATA.build(DATA.check(config), torch.device("cpu"), 0)


def test_without_augmentation_it_is_the_folder(pictures: Path) -> None:
    cached, folder = (hold_out(build(root=str(pictures), cache=cache), 0.25) for cache in ("memory", "none"))
    assert cached.fingerprint == folder.fingerprint
    assert cached.model_defaults == folder.model_defaults
    for name, split in folder.evals.items():
        indices = torch.arange(len(split)).flip(0)
        for ours, theirs in zip(
            cached.evals[name].batch(indices, None), split.batch(indices, None), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_crops_are_enlarged_as_torchvision_does() -> None:
    images = torch.randint(256, (50, 3, 24, 30), dtype=torch.uint8)
    crops = draw_crops(torch.arange(50), 3, 24, 30, Crops(32, 32, 0.08, True))
    found = resized_crops(images, crops, 32)
    for image, (top, left, height, width, mirrored), ours in zip(
        images, crops.T.tolist(), found, strict=True
    ):
        place = (int(top), int(left), int(height), int(width))
        theirs = v2.functional.resized_crop(image.float(), *place, [32, 32], antialias=True)
        theirs = v2.functional.horizontal_flip(theirs) if mirrored else theirs
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


def test_crops_are_drawn_as_torchvision_does() -> None:
    """The same distribution: areas, ratios and places of both have the same means and deviations."""
    count = 4000
    ours = draw_crops(torch.arange(count), 1, 24, 30, Crops(8, 8, 0.3, True)).numpy()
    crop = v2.RandomResizedCrop(8, scale=(0.3, 1.0))
    picture = [torch.empty(3, 24, 30)]
    drawn = [crop.make_params(picture) for _ in range(count)]
    theirs = np.array([[d[name] for d in drawn] for name in ("top", "left", "height", "width")], dtype=float)
    assert ours[4].mean() == pytest.approx(0.5, abs=0.03)
    for a, b in zip(ours[:4], theirs, strict=True):
        assert a.mean() == pytest.approx(b.mean(), abs=5 * b.std() / (count / 2) ** 0.5)
        assert a.std() == pytest.approx(b.std(), rel=0.1)
    assert ours[0].min() == ours[1].min() == 0
    assert (ours[0] + ours[2]).max() == 24
    assert (ours[1] + ours[3]).max() == 30
    narrow = draw_crops(torch.arange(9), 1, 100, 10, Crops(8, 8, 0.9, True))  # where no attempt succeeds
    assert narrow[:4].T.tolist() == [[43.0, 0.0, 13.0, 10.0]] * 9


def test_a_sample_does_not_depend_on_its_batch(pictures: Path) -> None:
    data = build(root=str(pictures), cache="memory", cutout=5)
    whole, labels = data.train.batch(torch.arange(12), 7)
    for part in torch.arange(12).split(5):
        inputs, some = data.train.batch(part, 7)
        torch.testing.assert_close(inputs, whole[part])
        assert torch.equal(some, labels[part])
    assert not torch.equal(whole, data.train.batch(torch.arange(12), 8)[0])
    assert ((whole == 0).sum((1, 2, 3)) >= 3).all(), "a square is cut out"
    plain = build(root=str(pictures), cache="memory", min_scale=1.0, flip=False)
    crops = draw_crops(torch.arange(12), 7, 20, 25, plain.train.crops)
    torch.testing.assert_close(
        plain.train.batch(torch.arange(12), 7)[0],
        plain.train.finish.normalized(resized_crops(plain.train.images, crops, 16)),
    )


def test_where_a_square_is_cut_out_does_not_depend_on_the_crop() -> None:
    indices = torch.arange(2000)
    crops = draw_crops(indices, 7, 100, 100, Crops(16, 20, 0.08, True))
    centres = Finish(torch.device("cpu"), False, 5, None).draw(indices, indices, (16, 16), 7)[:, 1:3]
    together = np.corrcoef(np.concatenate([crops.numpy(), centres.T.numpy()]))
    assert np.abs(together[:5, 5:]).max() < 0.1


def test_no_workers_and_any_micro_batches(pictures: Path) -> None:
    data = build(root=str(pictures), cache="memory")
    one = TrainLoader(data.train, LoaderOptions(batch_size=12, num_workers="auto"), seed=1)
    four = TrainLoader(data.train, LoaderOptions(batch_size=12), seed=1, micro_batches=4)
    torch.testing.assert_close(one.next_batch()[0][0], torch.cat([x for x, _ in four.next_batch()]))


def test_mistakes(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_images, "free_memory", lambda device: 18 * 3 * 20 * 25 - 1)
    with pytest.raises(
        DataError, match=r"data.cache=memory needs 26 KiB for 18 pictures, and 26 KiB are free"
    ):
        build(root=str(pictures), cache="memory")
    monkeypatch.undo()
    with pytest.raises(
        ConfigError, match=r"data.augment=timm changes picture by picture.*set data.cache=none"
    ):
        build(root=str(pictures), cache="memory", augment="timm")
    write(pictures / "val" / "dog" / "3.jpg", 0)
    Image.open(pictures / "val" / "dog" / "3.jpg").resize((9, 10)).save(pictures / "val" / "dog" / "3.jpg")
    message = r"one size, but \S+dog/3.jpg has 9 x 10 pixels instead of 30 x 24: leave data.cache at none"
    with pytest.raises(DataError, match=message):
        build(root=str(pictures), cache="memory")
    (pictures / "val" / "dog" / "3.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"3.jpg cannot be decoded"):
        build(root=str(pictures), cache="memory")
