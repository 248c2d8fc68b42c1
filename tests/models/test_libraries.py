"""The models of torchvision and timm; no weights are downloaded."""

import sys
from urllib.error import URLError

import pytest
import torch
from torch import nn

from trainer.errors import ConfigError, MissingExtra
from trainer.models import MODELS
from trainer.models.pretrained import replaced_weights

models = pytest.importorskip("torchvision.models")


def build(name, num_classes=7, in_channels=3, image_size=32, **options):
    torch.manual_seed(0)
    facts = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return MODELS.build(MODELS.check({"name": name, **facts, **options}))


@pytest.fixture
def weights(monkeypatch):
    """Stands in for the download: weights of a model with 1000 classes."""
    source = models.squeezenet1_0()
    nn.init.constant_(source.features[0].bias, 0.25)
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *a, **k: source.state_dict()
    )
    return source.state_dict()


def test_pretrained_weights_are_loaded_and_the_classifier_is_replaced(weights):
    model = build("torchvision", arch="squeezenet1_0", pretrained=True)
    own = model.state_dict()
    replaced = [name for name in own if own[name].shape != weights[name].shape]
    assert replaced == ["classifier.1.weight", "classifier.1.bias"]
    assert all(torch.equal(own[name], weights[name]) for name in own if name not in replaced)


def test_pretrained_weights_for_as_many_classes_keep_their_classifier(weights):
    model = build("torchvision", arch="squeezenet1_0", pretrained=True, num_classes=1000)
    assert torch.equal(model.classifier[1].weight, weights["classifier.1.weight"])


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(
        ConfigError, match=r"cannot be downloaded \(.*no network.*put https://.*pretrained=false$"
    ):
        build("torchvision", arch="squeezenet1_0", pretrained=True)


def test_weights_that_a_checkpoint_replaces_are_not_downloaded(monkeypatch):
    """What else comes with them stays: GoogLeNet rescales its inputs."""
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", pytest.fail)
    with replaced_weights():
        build("torchvision", arch="squeezenet1_0", pretrained=True)
        build("densenet121_cifar", pretrained=True)
        assert build("torchvision", arch="googlenet", pretrained=True).transform_input
    assert not build("torchvision", arch="googlenet").transform_input


def test_a_transformer_takes_the_data_sets_image_size():
    model = build("torchvision", arch="vit_b_32", image_size=64)
    assert model.encoder.pos_embedding.shape[1] == 5  # 2 x 2 patches and the class token


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "resnet19"}, "unknown model.arch=resnet19; did you mean resnet18"),
        ({"arch": "alexnet"}, "model.arch=alexnet does not take images of (32, 32): "),
        ({"arch": "vit_b_16", "image_size": 33}, "model.arch=vit_b_16 does not take images of (33, 33): "),
        ({"pretrained": True, "in_channels": 1}, "model.pretrained=true needs images of 3 channels, not 1"),
    ],
)
def test_torchvision_misfits_are_one_line(options, message):
    with pytest.raises(ConfigError) as error:
        build("torchvision", **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "resnet19"}, "unknown model.arch=resnet19; did you mean resnet18"),
        ({"arch": "resnet18", "options": {"depth": 3}}, "cannot be built: "),
        ({"arch": "vit_tiny_patch16_224"}, "does not take images of (32, 32): "),
    ],
)
def test_timm_misfits_are_one_line(options, message):
    pytest.importorskip("timm")
    with pytest.raises(ConfigError) as error:
        build("timm", **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_timm_that_is_not_installed_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"pip install '\.\[zoo\]'"):
        build("timm")
