import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.data.pictures import write
from trainer.data import DATA, Data, LoaderOptions, TrainLoader, eval_batches, hold_out
from trainer.data.finish import CUTOUT
from trainer.data.images import cutout
from trainer.data.random import mix, uniform
from trainer.errors import ConfigError, DataError


def build(root: Path, **options) -> Data:
    config = DATA.check(
        {"name": "image_folder", "root": str(root), "image_size": 16, "resize": 20, **options}
    )
    return DATA.build(config, torch.device("cpu"), 0)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    for label, name in enumerate(["n01", "n02", "n03"]):
        for number in range(4):
            write(
                tmp_path / "train" / name / f"{number}.JPEG",
                10 * label + number,
                "L" if number == 0 else "RGB",
            )
        write(tmp_path / "val" / name / "v.png", 100 + label)
    return tmp_path


@pytest.fixture
def tiny_imagenet(tmp_path: Path) -> Path:
    lines = []
    for label, name in enumerate(["n01", "n02"]):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("")
        for number in range(3):
            write(tmp_path / "train" / name / "images" / f"{name}_{number}.JPEG", 10 * label + number)
    for number, name in enumerate(["n02", "n01", "n02"]):
        write(tmp_path / "val" / "images" / f"val_{number}.JPEG", 100 + number)
        lines.append(f"val_{number}.JPEG\t{name}\t0\t0\t62\t62")
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_imagenet_layout(imagenet):
    data = build(imagenet)
    assert data.model_defaults == {"num_classes": 3, "in_channels": 3, "image_size": 16}
    assert len(data.train) == 12
    inputs, targets = data.train.batch(torch.arange(12), key=1)
    assert inputs.shape == (12, 3, 16, 16)
    assert inputs.dtype == torch.float32
    assert targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert list(data.evals) == ["test"]
    assert data.evals["test"].batch(torch.arange(3), None)[1].tolist() == [0, 1, 2]


def test_tiny_imagenet_layout(tiny_imagenet):
    data = build(tiny_imagenet)
    assert len(data.train) == 6
    assert data.evals["test"].batch(torch.arange(3), None)[1].tolist() == [1, 0, 1]


def test_evaluation_and_training_are_torchvisions_transforms(imagenet):
    data = build(imagenet, normalize=False)
    path = imagenet / "train" / "n01" / "1.JPEG"
    picture = Image.open(path).convert("RGB")
    pixels, scale = v2.PILToTensor()(picture), v2.ToDtype(torch.float32, scale=True)
    centre = v2.Compose([v2.Resize(20), v2.CenterCrop(16)])
    evaluated = data.train.batch(torch.tensor([1]), None)[0][0]
    torch.testing.assert_close(evaluated, scale(centre(pixels)))
    of_pil = scale(v2.PILToTensor()(centre(picture)))
    torch.testing.assert_close(evaluated, of_pil, atol=1.01 / 255, rtol=0)  # which rounds a little otherwise

    augment = v2.Compose([v2.RandomResizedCrop(16), v2.RandomHorizontalFlip()])
    for key in range(5):
        with torch.random.fork_rng():
            torch.manual_seed(mix(key, 1))
            expected = scale(augment(pixels))
        torch.testing.assert_close(data.train.batch(torch.tensor([1]), key)[0][0], expected)


def test_normalisation_is_imagenets(imagenet):
    plain, _ = build(imagenet, normalize=False).train.batch(torch.arange(3), None)
    normal, _ = build(imagenet).train.batch(torch.arange(3), None)
    torch.testing.assert_close(
        normal, v2.functional.normalize(plain, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )


def test_cutout_is_that_of_the_sets_in_memory(imagenet):
    whole, cut = (build(imagenet, cutout=side) for side in (0, 6))
    indices = torch.arange(len(whole.train))
    (inputs, labels), (other, same) = (data.train.batch(indices, 7) for data in (whole, cut))
    assert torch.equal(labels, same)
    centre = torch.from_numpy((uniform(mix(7, CUTOUT), indices, 2) * 16).astype(int))
    assert torch.equal(other, cutout(inputs.clone(), 6, *centre))
    assert not torch.equal(other, inputs)
    before, after = (data.train.batch(indices, None)[0] for data in (whole, cut))
    assert torch.equal(before, after), "evaluation sees all of a picture"


def test_workers_and_resuming_change_nothing(imagenet):
    data = build(imagenet, cutout=6)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loader = TrainLoader(data.train, LoaderOptions(batch_size=4), seed=1, micro_batches=2)
    expected = [loader.next_batch() for _ in range(5)]
    assert torch.equal(torch.get_rng_state(), before)

    torch.manual_seed(6)  # another global generator gives the same pictures
    other = TrainLoader(data.train, LoaderOptions(batch_size=4, num_workers=2), seed=1, micro_batches=2)
    other.load_state_dict({"epoch": 0, "batch": 2})
    for batch in expected[2:]:
        for (x, y), (x2, y2) in zip(batch, other.next_batch(), strict=True):
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)
    other.close()


def test_a_holdout_is_not_augmented(imagenet):
    data = hold_out(build(imagenet), 0.25)
    assert list(data.evals) == ["val", "test"]
    assert (len(data.train), len(data.evals["val"])) == (9, 3)
    for workers in (0, 1):
        ((inputs, _),) = eval_batches(
            data.evals["val"], LoaderOptions(eval_batch_size=3, num_workers=workers)
        )
        assert torch.equal(inputs, data.evals["val"].batch(torch.arange(3), None)[0])


@pytest.mark.parametrize(("num_workers", "size"), [(0, 200), (1, 200), (0, 0), (0, 3)])
def test_a_damaged_picture_is_named(imagenet, num_workers, size):
    path = imagenet / "val" / "n02" / "v.png"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError) as error:
        list(
            eval_batches(
                build(imagenet).evals["test"], LoaderOptions(eval_batch_size=2, num_workers=num_workers)
            )
        )
    assert str(error.value).startswith(f"{path} cannot be decoded (")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("mode", "dtype", "file"),
    [
        ("I;16", "uint16", "v.png"),
        ("I;16", "uint16", "v.tif"),
        ("F", "float32", "v.tif"),
        ("I", "int32", "v.tif"),
    ],
)
def test_more_than_8_bits_are_refused(imagenet, mode, dtype, file):
    """PIL would make them all white or all black."""
    (imagenet / "val" / "n02" / "v.png").unlink()
    path = imagenet / "val" / "n02" / file
    Image.fromarray(np.arange(900, dtype=dtype).reshape(30, 30)).save(path)
    with pytest.raises(DataError) as error:
        build(imagenet).evals["test"].batch(torch.tensor([1]), None)
    assert str(error.value).startswith(
        f"{path} cannot be decoded (mode {mode} has more than 8 bits a channel"
    )


def test_8_bits_of_every_kind_are_read(imagenet):
    for mode in ("L", "1", "P", "CMYK", "LA", "RGBA"):
        path = imagenet / "val" / "n02" / ("v.tif" if mode == "CMYK" else "v.png")
        write(path, 0, mode)
        images, _ = build(imagenet, normalize=False).evals["test"].batch(torch.tensor([1]), None)
        assert 0.2 < images.mean() < 0.8, mode
        path.unlink()


@pytest.mark.parametrize("error", [Image.DecompressionBombError("a bomb"), ValueError("of a\nkind")])
def test_whatever_pil_says_is_one_line_with_the_path(imagenet, error, monkeypatch):
    def refuse(path):
        raise error

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(
        DataError, match=r"v.png cannot be decoded \((a bomb|of a kind)\): replace or remove it"
    ):
        build(imagenet).evals["test"].batch(torch.tensor([1]), None)


def test_hidden_files_and_folders_are_no_data(imagenet):
    write(imagenet / "train" / ".ipynb_checkpoints" / "0.png", 0)
    write(imagenet / "train" / "n01" / ".ipynb_checkpoints" / "0.png", 0)
    (imagenet / "train" / "n01" / "._0.jpg").write_bytes(b"of macOS")
    data = build(imagenet)
    assert (len(data.train), data.model_defaults["num_classes"]) == (12, 3)


@pytest.mark.parametrize("target", [".", "..", "../..", "deep"])
def test_links_count_nothing_twice(imagenet, target):
    write(imagenet / "train" / "n01" / "deep" / "0.png", 0)
    (imagenet / "train" / "n01" / "link").symlink_to(target)
    with pytest.raises(DataError, match=r"leads to a folder whose pictures count already: remove it"):
        build(imagenet)


def test_links_to_elsewhere_are_followed(imagenet, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere / "pictures" / "0.png", 0)
    (imagenet / "train" / "n01" / "link").symlink_to(elsewhere / "pictures")
    (imagenet / "val" / "n02").rename(elsewhere / "n02")
    (imagenet / "val" / "n02").symlink_to(elsewhere / "n02")
    data = build(imagenet)
    assert (len(data.train), len(data.evals["test"])) == (13, 3)


def test_names_are_bytes_and_one_class_will_do(tmp_path):
    """Two forms of one letter, which look alike, and what is no UTF-8, are classes of their own."""
    names = [os.fsdecode(name) for name in (b"\xff", "é".encode(), "e\u0301".encode(), "漢 字".encode())]
    for count in (1, 4):
        for name in names[:count]:
            for split in ("train", "val"):
                write(tmp_path / split / name / f"{name}.png", 0)
        data = build(tmp_path)
        assert data.model_defaults["num_classes"] == len(data.train) == count
        assert sorted(data.train.batch(torch.arange(count), None)[1].tolist()) == list(range(count))


def test_errors_say_what_would_be_right(imagenet, tmp_path):
    with pytest.raises(
        DataError, match=r"nowhere/train is missing: data.root=.*nowhere must hold train/CLASS/\*.jpg"
    ):
        build(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"data.resize=10 must be at least data.image_size=16"):
        build(imagenet, resize=10)
    (imagenet / "val" / "n03" / "v.png").rename(imagenet / "v.png")
    with pytest.raises(DataError, match=r"val/n03 has no images: every class needs some"):
        build(imagenet)
    (imagenet / "val" / "n03").rename(imagenet / "val" / "n04")
    (imagenet / "v.png").rename(imagenet / "val" / "n04" / "v.png")
    with pytest.raises(
        DataError, match=r"train has 3 classes and val 3; they must be the same, but n03 is in train only"
    ):
        build(imagenet)


def test_an_empty_folder(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match=r"train has no images: data.root="):
        build(tmp_path)


def test_damaged_annotations(tiny_imagenet):
    (tiny_imagenet / "val" / "val_annotations.txt").write_text("val_0.JPEG n02\n")
    with pytest.raises(DataError, match=r"val_annotations.txt line 1 is not: file name, tab, class"):
        build(tiny_imagenet)
