import pytest
import torch

from trainer.data import DATA, Data, hold_out
from trainer.errors import ConfigError


def build(name: str, **options) -> Data:
    return DATA.build(DATA.check({"name": name, **options}), torch.device("cpu"), 0)


def everything(data: Data, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    part = data.train if split == "train" else data.evals[split]
    return part.batch(torch.arange(len(part)), None)


def test_nothing_held_out() -> None:
    data = build("digits")
    assert hold_out(data, 0.0) is data


def test_images_are_held_out_at_random_and_share_nothing_with_the_training_set() -> None:
    whole = build("digits")
    data = hold_out(whole, 0.2)
    assert list(data.evals) == ["val", "test"]
    assert (len(data.train), len(data.evals["val"]), len(data.evals["test"])) == (1150, 287, 360)
    assert data.model_defaults == whole.model_defaults
    (train, train_labels), (val, val_labels) = everything(data, "train"), everything(data, "val")
    assert len(val_labels.unique()) == 10
    images, labels = everything(whole, "train")
    found = [(image.sum().item(), label.item()) for image, label in zip(images, labels, strict=True)]
    parts = zip(torch.cat([train, val]), torch.cat([train_labels, val_labels]), strict=True)
    assert sorted(found) == sorted((image.sum().item(), label.item()) for image, label in parts)


def test_only_the_training_set_is_augmented() -> None:
    data = hold_out(build("digits"), 0.5)
    first = torch.arange(8)
    plain, augmented = (data.train.batch(first, key)[0] for key in (None, 1))
    assert not torch.equal(plain, augmented)
    assert torch.equal(augmented, data.train.batch(first, 1)[0])


def test_the_end_of_a_text_is_held_out(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij" * 10)
    whole = build("text", path=str(tmp_path / "a.txt"), context_length=4, val_fraction=0.2)
    data = hold_out(whole, 0.25)
    assert list(data.evals) == ["val", "test"]
    assert torch.equal(everything(data, "test")[0], everything(whole, "val")[0])
    tokens = torch.cat([everything(data, "train")[0], everything(data, "val")[0]])
    assert torch.equal(tokens, everything(whole, "train")[0])


@pytest.mark.parametrize("share", [0.0001, 0.9999])
def test_both_sides_need_samples(share: float) -> None:
    with pytest.raises(ConfigError, match=r"leaves one part of the 1437 training samples empty"):
        hold_out(build("digits"), share)
