"""The image sets that live in memory: digits, Fashion-MNIST, CIFAR."""

import gzip
import pickle
import sys
from math import prod
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import datasets

from trainer.data import DATA, Data, fashion_mnist
from trainer.data.digits import FILE, stratified_split
from trainer.data.images import check_sets
from trainer.errors import DataError


def build(name: str, **options) -> Data:
    return DATA.build(DATA.check({"name": name, **options}), torch.device("cpu"), 0)


def write_fashion_mnist(folder: Path, train: int = 30, test: int = 10) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, samples in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (samples, 28, 28), dtype=np.uint8)
        labels = (np.arange(samples) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return folder


def write_cifar(folder: Path, dataset: type[datasets.CIFAR10], label: str) -> None:
    folder = folder / dataset.base_folder
    folder.mkdir(parents=True)
    for number, (name, _) in enumerate(dataset.train_list + dataset.test_list):
        data = np.full((4, 3072), number, dtype=np.uint8)
        data[:, 1024:2048] = 100 + number  # the green plane
        data[:, 1] = 200  # row 0, column 1 of the red plane
        (folder / name).write_bytes(pickle.dumps({"data": data, label: [0, 1, 2, 3]}))
    (folder / dataset.meta["filename"]).write_bytes(pickle.dumps({dataset.meta["key"]: list("abcd")}))


def test_digits():
    data = build("digits", normalize=False)
    assert (len(data.train), len(data.evals["test"])) == (1437, 360)
    assert data.model_defaults == {"num_classes": 10, "in_channels": 1, "image_size": 8}
    inputs, targets = data.evals["test"].batch(torch.arange(360), None)
    assert (inputs.min(), inputs.max()) == (0, 1)
    assert targets.bincount().tolist() == [36] * 10
    inputs, _ = build("digits").train.batch(torch.arange(1437), None)
    assert inputs.mean().abs() < 1e-3
    assert (inputs.std() - 1).abs() < 1e-3


def test_digits_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.datasets")
    ours, theirs = np.load(FILE), sklearn.load_digits()
    assert (ours["images"] == theirs.images).all()
    assert (ours["labels"] == theirs.target).all()


def test_the_split_of_the_digits_shares_nothing_and_forgets_nothing():
    labels = torch.from_numpy(np.load(FILE)["labels"])
    train, test = stratified_split(labels, 36)
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(1797))


@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_fashion_mnist_from_either_layout(tmp_path, below):
    write_fashion_mnist(tmp_path / below)
    data = build("fashion_mnist", root=str(tmp_path), normalize=False)
    assert (len(data.train), len(data.evals["test"])) == (30, 10)
    assert data.model_defaults == {"num_classes": 10, "in_channels": 1, "image_size": 28}
    inputs, targets = data.train.batch(torch.arange(30), None)
    assert targets.tolist() == [i % 10 for i in range(30)]
    expected = np.random.default_rng(0).integers(0, 256, (30, 1, 28, 28), dtype=np.uint8)
    torch.testing.assert_close(inputs, torch.from_numpy(expected) / 255)


def test_fashion_mnist_from_debian_when_there_is_nothing_nearer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", write_fashion_mnist(tmp_path / "debian"))
    assert len(build("fashion_mnist").train) == 30
    write_fashion_mnist(tmp_path / "data", train=20)
    assert len(build("fashion_mnist").train) == 20


def test_fashion_mnist_missing(tmp_path):
    with pytest.raises(
        DataError, match=r"apt-get install dataset-fashion-mnist and leave data.root out, or data.download"
    ):
        build("fashion_mnist", root=str(tmp_path / "x"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "cannot be read"),
        (lambda content: b"not gzip" + content, "cannot be read"),
        (lambda content: content[:40] + bytes(20) + content[60:], "cannot be read"),
        (lambda content: gzip.compress(gzip.decompress(content)[:-5]), "is not a complete IDX file of bytes"),
        (lambda content: gzip.compress(b""), "is not a complete IDX file of bytes"),
        (
            lambda content: gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7])),
            "holds train images .1. and labels .30.",
        ),
    ],
)
def test_fashion_mnist_damaged(tmp_path, damage, message):
    path = write_fashion_mnist(tmp_path) / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as error:
        build("fashion_mnist", root=str(tmp_path))
    assert "\n" not in str(error.value)


def test_fashion_mnist_with_other_labels(tmp_path):
    path = write_fashion_mnist(tmp_path) / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1] + b"\x11"))
    with pytest.raises(DataError, match=r"an image for testing has the label 17: labels must be 0 to 9$"):
        build("fashion_mnist", root=str(tmp_path))


def idx(*shape):
    sizes = np.array(shape, dtype=">u4").tobytes()
    return gzip.compress(bytes([0, 0, 8, len(shape)]) + sizes + bytes(prod(shape)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((10, 5, 5), r"images for training have the shape \[1, 28, 28\] and for testing \[1, 5, 5\]"),
        ((0, 28, 28), "is not a complete IDX file of bytes"),
        ((50, 28, 28), "has more than 0 GiB when it is unpacked"),
    ],
)
def test_fashion_mnist_of_other_sizes(tmp_path, shape, message, monkeypatch):
    monkeypatch.setattr(sys.modules["trainer.data.fashion_mnist"], "LARGEST", 30_000)
    write_fashion_mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(idx(*shape))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx(shape[0]))
    with pytest.raises(DataError, match=message):
        build("fashion_mnist", root=str(tmp_path))


def test_labels_of_an_image_set():
    images, labels = torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 1])
    check_sets((images, labels), (images, labels), 2)
    with pytest.raises(DataError, match="an image for training has the label -1: labels must be 0 to 1"):
        check_sets((images, labels - 1), (images, labels), 2)
    with pytest.raises(DataError, match="there are no images for testing"):
        check_sets((images, labels), (images[:0], labels[:0]), 2)


@pytest.mark.parametrize(
    ("name", "dataset", "label", "samples"),
    [("cifar10", datasets.CIFAR10, "labels", 20), ("cifar100", datasets.CIFAR100, "fine_labels", 4)],
)
def test_cifar(tmp_path, monkeypatch, name, dataset, label, samples):
    write_cifar(tmp_path, dataset, label)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())
    data = build(name, root=str(tmp_path), normalize=False)
    assert len(data.train) == samples
    assert len(data.evals["test"]) == 4
    assert data.model_defaults == {"num_classes": int(name[5:]), "in_channels": 3, "image_size": 32}
    inputs, targets = data.train.batch(torch.arange(4), None)
    assert targets.tolist() == [0, 1, 2, 3]
    pixels = (inputs * 255).round()
    assert (pixels[:, 1] == 100).all()
    assert (pixels[:, 0, 0, 1] == 200).all()
    assert (pixels[:, 0, 1:] == 0).all()


def test_cifar_missing_or_damaged(tmp_path):
    with pytest.raises(DataError, match=r"no complete CIFAR10 in .*data.download=true, or unpack https://"):
        build("cifar10", root=str(tmp_path / "x"))
    assert not list(tmp_path.iterdir())
    write_cifar(tmp_path, datasets.CIFAR10, "labels")  # with other sums than the published files
    with pytest.raises(DataError, match=r"no complete CIFAR10 in .*: remove it if it is there"):
        build("cifar10", root=str(tmp_path))


class FakeDownload(datasets.CIFAR10):
    """Downloads what write_cifar writes, or breaks off in the middle."""

    offline = False

    def _check_integrity(self) -> bool:
        return True

    def _load_meta(self) -> None:
        self.classes = ["airplane"]

    def download(self) -> None:
        write_cifar(Path(self.root), datasets.CIFAR10, "labels")
        if self.offline:
            raise URLError("Name or service\nnot known")


def test_a_download_is_whole_or_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "CIFAR10", FakeDownload)
    root = tmp_path / "deep" / "data"
    monkeypatch.setattr(FakeDownload, "offline", True)
    with pytest.raises(
        DataError, match=r"data.download failed \(.*Name or service not known.*\): put the set into"
    ):
        build("cifar10", root=str(root), download=True)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(FakeDownload, "offline", False)
    assert len(build("cifar10", root=str(root), download=True).train) == 20
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_cifar_by_another_mean_and_deviation(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda path, md5=None: True)
    write_cifar(tmp_path, datasets.CIFAR10, "labels")
    raw, given = (
        build("cifar10", root=str(tmp_path), **options).train.batch(torch.arange(4), None)[0]
        for options in ({"normalize": False}, {"mean": [0.1, 0.2, 0.3], "std": [0.2023, 0.1994, 0.2010]})
    )
    expected = (raw - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.2023, 0.1994, 0.2010]
    ).view(3, 1, 1)
    torch.testing.assert_close(given, expected)


def test_iris_is_scikit_learns_by_its_principal_components():
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_iris
    from sklearn.decomposition import PCA

    data, flowers = build("iris"), load_iris()
    assert (len(data.train), len(data.evals["test"])) == (120, 30)
    assert data.model_defaults == {"num_classes": 3, "in_channels": 1, "image_size": (1, 2)}
    train, test = stratified_split(torch.from_numpy(flowers.target), 10)
    pca = PCA(2, whiten=True).fit(flowers.data[train])
    for split, numbers in ((data.train, train), (data.evals["test"], test)):
        inputs, targets = split.batch(torch.arange(len(split)), None)
        assert targets.tolist() == flowers.target[numbers].tolist()
        whitened = (
            torch.from_numpy(pca.transform(flowers.data[numbers])) * (120 / 119) ** 0.5
        )  # theirs: unbiased
        torch.testing.assert_close(inputs.view(-1, 2), whitened.float(), rtol=1e-4, atol=1e-5)
