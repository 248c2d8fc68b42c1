"""The config files say what the code says, and every experiment is one that runs."""

import re
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from torchvision import datasets

from tests.data.test_image_sets import write_cifar, write_fashion_mnist
from trainer.callbacks import CALLBACKS
from trainer.cli.train import main
from trainer.config.command_line import CONF, parse_arguments
from trainer.config.compose import compose_run
from trainer.config.schema import (
    REGISTRIES,
    CheckpointOptions,
    Config,
    LoopOptions,
    PrecisionOptions,
    check_config,
)
from trainer.config.stored import differences
from trainer.data import LoaderOptions
from trainer.monitor import MonitorOptions
from trainer.optim import OptimizerOptions, ScheduleOptions
from trainer.options import REQUIRED, check_options, options_of, to_dict

FILES = [(group, path.stem) for group in REGISTRIES for path in sorted((CONF / group).glob("*.yaml"))]
COMPONENTS = [(group, name) for group, name in FILES if name in REGISTRIES[group]]
GPT2 = {"mlp": "gelu_tanh"}
LLAMA = {"norm": "rms", "position": "rope", "mlp": "swiglu", "bias": False, "tied": False}
PRESETS = {
    ("data", "small_images"): (
        "synthetic_images",
        {"train_samples": 256, "test_samples": 64, "image_size": 16, "noise": 0.3},
    ),
    ("data", "tiny_imagenet"): ("image_folder", {"image_size": 64, "resize": 64}),
    ("model", "swin_base_cifar"): ("swin_tiny_cifar", {"width": 128, "depths": [2, 2, 18, 2]}),
    ("optimizer", "adafisher_calibrated"): ("adafisher", {"rule": "calibrated"}),
    ("optimizer", "adafisher_paper"): ("adafisher", {"rule": "paper"}),
    ("optimizer", "adafisher_released"): ("adafisher", {"rule": "released"}),
    ("optimizer", "adafisherw_calibrated"): ("adafisherw", {"rule": "calibrated"}),
    ("optimizer", "adafisherw_paper"): ("adafisherw", {"rule": "paper"}),
    ("optimizer", "adafisherw_released"): ("adafisherw", {"rule": "released"}),
    ("model", "gpt2_124m"): ("gpt", {**GPT2, "layers": 12, "width": 768, "heads": 12}),
    ("model", "gpt2_350m"): ("gpt", {**GPT2, "layers": 24, "width": 1024, "heads": 16}),
    ("model", "llama_60m"): ("gpt", {**LLAMA, "layers": 8, "width": 512, "heads": 8, "mlp_width": 1376}),
    ("model", "llama_160m"): ("gpt", {**LLAMA, "layers": 12, "width": 768, "heads": 12, "mlp_width": 3072}),
}
"""Files of a component with other values than its defaults."""
FIXED = {
    "precision": PrecisionOptions,
    "checkpoint": CheckpointOptions,
    "monitor": MonitorOptions,
}
LOADER = {"batch_size", "eval_batch_size", "num_workers"}  # data sets may have their own defaults of these
SHARED = {
    "_loader": LoaderOptions,
    "_optimizer": OptimizerOptions,
    "_schedule": ScheduleOptions,
}
"""Files that every component of a group includes: the options that are common to the group."""
TINY_IMAGENET = ["data.batch_size=2", "data.image_size=32", "data.resize=32", "data.num_workers=0"]
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def load(path: Path) -> dict:
    return OmegaConf.to_container(OmegaConf.load(path))


@pytest.fixture(scope="module")
def composed() -> dict[tuple[str, str], dict]:
    """Every component's file with those that it includes, by Hydra's public way."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return {
            (group, name): OmegaConf.to_container(compose("config", overrides=[f"{group}={name}"])[group])
            for group, name in FILES
        }


@pytest.mark.parametrize(("group", "name"), COMPONENTS)
def test_every_option_of_a_component_with_its_default(
    group: str, name: str, composed: dict[tuple[str, str], dict]
) -> None:
    registry = REGISTRIES[group]
    values = dict(composed[group, name])
    assert values.pop("name") == name
    options = {**registry.common, **registry.get(name).options}
    assert set(values) == set(options)
    for key, value in values.items():
        default = options[key].default
        if default is REQUIRED:
            assert value is None or value == "???"
        elif key not in LOADER:
            assert value == (list(default) if isinstance(default, tuple) else default), key


def test_every_component_has_a_file() -> None:
    components = {
        (group, entry.name)
        for group, registry in REGISTRIES.items()
        for entry in registry
        if entry.target.__module__.startswith("trainer.")  # another test's plugin may be in this process
    }
    assert components == set(COMPONENTS)
    assert set(FILES) - components == set(PRESETS)


@pytest.mark.parametrize("name", CALLBACKS.names())
def test_every_option_of_a_callback_with_its_default(name: str) -> None:
    file = CONF / "callbacks" / f"{name}.yaml"
    assert file.read_text().startswith(f"# @package callbacks.{name}\n# ")
    options = CALLBACKS.get(name).options
    assert load(file) == {
        key: "???" if option.default is REQUIRED else option.default for key, option in options.items()
    }


def test_several_callbacks_are_chosen_and_changed() -> None:
    line = [
        "callbacks=[sharpness,early_stop]",
        "callbacks.early_stop.patience=3",
        "callbacks.sharpness.samples=5",
    ]
    config, _ = compose_run(parse_arguments(line))
    sharpness = {"samples": 5, "iterations": 50, "tolerance": 1e-3}
    early_stop = {"metric": None, "patience": 3, "min_delta": 0.0, "target": None}
    assert config.callbacks == {"sharpness": sharpness, "early_stop": early_stop}
    assert check_config({**to_dict(config), "callbacks": ["sharpness"]}).callbacks == {
        "sharpness": {**sharpness, "samples": 256}
    }


def test_a_run_goes_on_with_other_callbacks_if_they_only_watch() -> None:
    def config_of(*line: str) -> Config:
        return compose_run(parse_arguments(list(line)))[0]

    frozen = [
        "callbacks=[freeze_until]",
        "callbacks.freeze_until.parameters=[a]",
        "callbacks.freeze_until.until=2",
    ]
    plain, watched, other = config_of(), config_of("callbacks=[sharpness]"), config_of(*frozen)
    assert differences(to_dict(plain), watched) == []
    assert differences({**to_dict(plain), "callbacks": None}, watched) == []
    assert differences(to_dict(watched), plain) == []
    assert differences(to_dict(plain), other) == ["callbacks.freeze_until=false there, true here"]
    later = config_of(*frozen, "callbacks.freeze_until.until=3")
    assert differences(to_dict(other), later) == ["callbacks.freeze_until.until=2.0 there, 3.0 here"]
    old = to_dict(plain)
    del old["objective"], old["callbacks"]
    assert differences(old, plain) == []
    assert differences(old, config_of("objective=mse")) == ["objective=auto there, mse here"]


@pytest.mark.parametrize(("group", "name"), PRESETS)
def test_presets_differ_from_their_component_as_they_say(
    group: str, name: str, composed: dict[tuple[str, str], dict]
) -> None:
    component, different = PRESETS[group, name]
    assert composed[group, name] == {**composed[group, component], **different}


@pytest.mark.parametrize("name", SHARED)
def test_what_all_components_of_a_group_include(name: str) -> None:
    values = load(CONF / f"{name}.yaml")
    values.pop("name", None)
    assert values == {key: option.default for key, option in options_of(SHARED[name]).items()}


def test_what_is_included_is_no_choice(capfd: pytest.CaptureFixture[str]) -> None:
    shared = sorted(path.stem for path in CONF.glob("_*.yaml"))
    assert set(SHARED) < set(shared)
    with pytest.raises(SystemExit, match=r"^0$"):  # Hydra's
        main(["--help"])
    listed = capfd.readouterr().out
    assert "data: cifar10, cifar100, digits, " in listed
    assert not set(shared) & set(re.findall(r"[\w.]+", listed))
    assert main(["data=_loader"]) == 2
    message = capfd.readouterr().err
    assert message.startswith("error: unknown option data=_loader (known: cifar10, ")


@pytest.mark.parametrize("group", FIXED)
def test_fixed_groups(group: str) -> None:
    for path in (CONF / group).glob("*.yaml"):
        values = load(path)
        checked = check_options(options_of(FIXED[group]), values, group)
        assert set(values) == set(checked)
    if (CONF / group / "default.yaml").exists():
        assert load(CONF / group / "default.yaml") == {
            key: option.default for key, option in options_of(FIXED[group]).items()
        }


def test_the_loop_and_the_top() -> None:
    values = load(CONF / "config.yaml")
    assert values["loop"] == {key: option.default for key, option in options_of(LoopOptions).items()}
    groups = {key for entry in values["defaults"] if isinstance(entry, dict) for key in entry}
    assert set(options_of(Config)) <= set(values) | groups


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few samples of each data set, in its own layout."""
    root = tmp_path_factory.mktemp("data")
    write_cifar(root, datasets.CIFAR10, "labels")
    write_fashion_mnist(root)
    (root / "text.txt").write_text("To be, or not to be, that is the question: " * 200)
    (root / "wikitext").mkdir()
    for split in ("train", "valid", "test"):
        (root / "wikitext" / f"wiki.{split}.tokens").write_text(
            "To be, or not to be, that is the question: " * 20
        )
    for split in ("train", "val"):
        for number, name in enumerate("ab"):
            (root / split / name).mkdir(parents=True)
            Image.fromarray(np.full((40, 40, 3), 90 * number, np.uint8)).save(root / split / name / "1.png")
    return root


SMALLER = {
    "cifar10_resnet18": ["data.batch_size=4"],
    "cifar_cnn_adafisher": ["quick=images"],
    "cifar_cnn_adam": ["quick=images"],
    "cifar_cnn_sgd": ["quick=images"],
    "cifar_vit_adafisherw": ["quick=images"],
    "cifar_vit_adamw": ["quick=images"],
    "cifar_vit_sgd": ["quick=images"],
    "cifar_cnn_adahessian": ["quick=images"],
    "cifar_cnn_kfac": ["quick=images"],
    "cifar_cnn_shampoo": ["quick=images"],
    "cifar_vit_adahessian": ["model=cct2_cifar", "quick=images"],
    "cifar_vit_kfac": ["model=cct2_cifar", "quick=images"],
    "cifar_vit_shampoo": ["model=cct2_cifar", "quick=images"],
    "wikitext2_gpt1_adahessian": ["quick=text"],
    "wikitext2_gpt1_shampoo": ["quick=text"],
    "iris_mlp": [],
    "wikitext2_gpt1_adafisherw": ["quick=text"],
    "wikitext2_gpt1_adamw": ["quick=text"],
    "imagenet_resnet50": TINY_IMAGENET,
    "imagenet_resnet50_adam": TINY_IMAGENET,
    "imagenet_resnet50_kfac": [*TINY_IMAGENET, "model.arch=mobilenet_v3_small"],
    "imagenet_resnet50_shampoo": [*TINY_IMAGENET, "model.arch=mobilenet_v3_small"],
    "wikitext2_gpt": ["data.batch_size=2", "data.tokenizer=bytes", "model.width=96"],
    "shakespeare_gpt": ["data.batch_size=2"],
    "fashion_mnist_cnn": ["data.batch_size=4"],
    "fashion_mnist_autoencoder": ["data.batch_size=4"],
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_run_dry(
    name: str, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())
    paths = {"shakespeare_gpt": "text.txt", "wikitext2": "wikitext"}
    place = [f"data.path={sets / path}" for prefix, path in paths.items() if name.startswith(prefix)]
    if not place and not name.startswith(("cifar_", "iris")):
        place = [f"data.root={sets}"]
    assert main([f"experiment={name}", "dry_run=true", *place, *SMALLER[name]]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    shown = ("parameters", "optimizer state", "step 2", "evaluation")
    for text in (*shown, "curvature") if "adafisher" in out else shown:
        assert text in out
    assert list(tmp_path.iterdir()) == []
