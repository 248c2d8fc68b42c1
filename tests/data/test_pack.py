"""Packs: what is in them, how they are read, what becomes of interruptions, damage and mistakes."""

import os
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from tests.data.pictures import cats_and_dogs, write
from trainer.data import DATA, Data, LoaderOptions, TrainLoader, pack
from trainer.data.__main__ import main
from trainer.data.base import LazySplit
from trainer.errors import DataError, UserError


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = cats_and_dogs(tmp_path / "pictures", train=6, val=2)
    write(root / "train" / "cat" / "deep.er" / "0.PNG", 77, "L")  # no name that webdataset would take
    return root


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few pictures make several."""
    plan = pack.plan
    monkeypatch.setattr(pack, "plan", lambda split, samples, size: plan(split, samples, 6000))


def build(**options: object) -> Data:
    config = {"name": "image_folder", "image_size": 16, "resize": 20, **options}
    return DATA.build(DATA.check(config), torch.device("cpu"), 0)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("small_shards")
def test_a_pack_is_the_folder(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["pack", str(pictures), "--out", str(out)]) == 0
    told = "13 pictures in train and 4 pictures in val, 2 classes"
    assert told in capsys.readouterr().out
    assert len([*out.glob("train-*.tar")]) > 2
    shutil.move(out, tmp_path / "moved")
    assert main(["verify", str(tmp_path / "moved")]) == 0
    assert "as written" in capsys.readouterr().out

    folder, packed = build(root=str(pictures)), build(path=str(tmp_path / "moved"))
    assert packed.fingerprint == folder.fingerprint
    assert packed.model_defaults == folder.model_defaults
    for key in (None, 5):
        for ours, theirs in ((packed.train, folder.train), (packed.evals["test"], folder.evals["test"])):
            indices = torch.arange(len(theirs)).flip(0)
            for a, b in zip(ours.batch(indices, key), theirs.batch(indices, key), strict=True):
                assert torch.equal(a, b)
    loader = TrainLoader(packed.train, LoaderOptions(batch_size=4, num_workers=2), seed=1)
    other = TrainLoader(folder.train, LoaderOptions(batch_size=4), seed=1)
    for _ in range(4):
        assert torch.equal(loader.next_batch()[0][0], other.next_batch()[0][0])
    loader.close()
    assert isinstance(packed.train, LazySplit)
    copy = pickle.loads(pickle.dumps(packed.train.pictures))  # as for workers that are not forked
    assert copy.read(3) == packed.train.pictures.read(3)


@pytest.mark.usefixtures("small_shards")
def test_the_layout_is_webdatasets(pictures: Path, tmp_path: Path) -> None:
    pack.pack(pictures, tmp_path / "out", 1, lambda *_: None)
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted((tmp_path / "out").glob("train-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")  # what webdataset takes for a key
                samples.setdefault(key, {})[kind] = tar.extractfile(member).read()
    assert [int(sample["cls"]) for sample in samples.values()] == [0] * 7 + [1] * 6
    found = [next(v for k, v in sample.items() if k != "cls") for sample in samples.values()]
    assert sorted(found) == sorted(
        path.read_bytes() for path in (pictures / "train").rglob("*") if path.is_file()
    )
    assert {kind for sample in samples.values() for kind in sample} == {"cls", "jpg", "png"}


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("at", [0, 2])
def test_an_interrupted_pack_goes_on(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused, at: int
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    pack.pack(pictures, whole, 512, lambda *_: None)
    written = pack.write_shard
    seen: list[Path] = []

    def interrupt(path: Path, planned: pack.Plan, numbers: list[int]) -> None:
        if len(seen) == at:
            path.with_name(f".{path.name}.part").write_bytes(b"half")  # as SIGKILL leaves it
            raise KeyboardInterrupt
        seen.append(path)
        written(path, planned, numbers)

    monkeypatch.setattr(pack, "write_shard", interrupt)
    assert main(["pack", str(pictures), "--out", str(out)]) == 130
    assert out.exists()
    with pytest.raises(DataError, match=r"data.path=.*out is no complete pack \(it has no manifest.json\)"):
        build(path=str(out))
    monkeypatch.setattr(pack, "write_shard", written)
    before = [path.stat().st_mtime_ns for path in seen]
    assert main(["pack", str(pictures), "--out", str(out)]) == 0
    assert [path.stat().st_mtime_ns for path in seen] == before
    assert content(out) == content(whole)
    assert main(["pack", str(pictures), "--out", str(out)]) == 0, "there is nothing left to do"
    assert content(out) == content(whole)


def test_nothing_is_left_of_a_pack_that_could_not_begin(pictures: Path, tmp_path: Path, refused) -> None:
    for source, hint in ((tmp_path / "nowhere", "nowhere/train is missing"), (pictures / "train", "missing")):
        refused(main(["pack", str(source), "--out", str(tmp_path / "out")]), hint)
    (pictures / "train" / "cat" / "0.jpg").unlink()
    (pictures / "train" / "cat" / "0.jpg").symlink_to("gone")
    refused(
        main(["pack", str(pictures), "--out", str(tmp_path / "out")]),
        "cat/0.jpg cannot be read: No such file",
    )
    assert not (tmp_path / "out").exists()


def test_another_folders_pack_is_kept(pictures: Path, tmp_path: Path, refused) -> None:
    out = tmp_path / "out"
    pack.pack(pictures, out, 512, lambda *_: None)
    write(pictures / "train" / "cat" / "new.png", 9)
    refused(main(["pack", str(pictures), "--out", str(out)]), "was made of another folder")
    refused(main(["pack", str(pictures), "--out", str(pictures)]), "is neither empty nor a pack")
    (tmp_path / "file").write_text("")
    refused(main(["pack", str(pictures), "--out", str(tmp_path / "file")]), "cannot be made")
    refused(main(["pack", str(pictures), "--out", str(out), "--shard-mib", "0"]), "--shard-mib: '0'")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_tar_file_is_told(pictures: Path, tmp_path: Path, refused, workers: int) -> None:
    out = tmp_path / "out"
    pack.pack(pictures, out, 512, lambda *_: None)
    tar = out / "train-00000.tar"
    whole = tar.read_bytes()
    place = build(path=str(out)).train.pictures.index.offset[4] + 300  # in the middle of a picture
    damaged = bytearray(whole)
    damaged[place] ^= 1
    tar.write_bytes(damaged)
    refused(main(["verify", str(out)]), f"{tar} is damaged: its checksum is not that of the manifest")
    loader = TrainLoader(
        build(path=str(out)).train, LoaderOptions(batch_size=13, num_workers=workers), seed=0
    )
    with pytest.raises(
        DataError, match=r"train/cat/\S+ in \S+00000.tar is not what was packed: copy or make"
    ):
        loader.next_batch()

    data = build(path=str(out))
    os.truncate(tar, 2000)  # under a run's feet
    with pytest.raises(DataError, match="is not what was packed"):
        data.train.batch(torch.tensor([12]), None)
    shorter = f"{tar} has 2,000 bytes instead of"
    refused(main(["verify", str(out)]), shorter)
    with pytest.raises(DataError, match=shorter):
        build(path=str(out))
    tar.unlink()
    with pytest.raises(DataError, match=r"00000.tar is missing: copy or make the pack again"):
        build(path=str(out))
    tar.write_bytes(whole)
    index = out / "train.npz"
    index.write_bytes(index.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"train.npz is damaged"):
        build(path=str(out))


def test_what_is_no_pack(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.path=\S+ is no complete pack \(it has no manifest.json\)"):
        build(path=str(pictures))
    pack.pack(pictures, tmp_path / "out", 512, lambda *_: None)
    with pytest.raises(UserError, match=r"data.root=(\S+) is a pack: read it by data.path=\1"):
        build(root=str(tmp_path / "out"))
    (tmp_path / "out" / "manifest.json").write_text('{"tokens": 3}')
    with pytest.raises(UserError, match=r"is no complete pack \(manifest.json is of something else\)"):
        build(path=str(tmp_path / "out"))


def test_a_picture_of_a_pack_that_cannot_be_decoded(pictures: Path, tmp_path: Path) -> None:
    (pictures / "val" / "dog" / "1.jpg").write_bytes(b"no picture")
    pack.pack(pictures, tmp_path / "out", 512, lambda *_: None)
    message = r"val/dog/1.jpg in \S+val-00000.tar cannot be decoded \(it is in no format that PIL knows\)"
    with pytest.raises(DataError, match=message):
        build(path=str(tmp_path / "out")).evals["test"].batch(torch.tensor([3]), None)
