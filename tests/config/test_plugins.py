"""A model, a data set and an optimizer that live outside the repo."""

import os
import sys
from pathlib import Path

import pytest

from tests.forks import FORKS
from tests.training.kill_and_resume import content
from trainer.cli.train import main
from trainer.config.schema import EXTENSIBLE

pytestmark = pytest.mark.slow

COMPONENTS = '''
import torch
from torch import nn

from trainer.data import DATA, Data, Split
from trainer.models import MODELS
from trainer.optim import OPTIMIZERS
from trainer.options import Count, NonNegative


@MODELS.register("outside_model")
def outside_model(*, num_classes: Count | None = None, width: Count = 16) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.ReLU(), nn.Linear(width, num_classes))


class Corners(Split):
    """Four pixels; the brightest is the class."""

    def __len__(self):
        return 256

    def batch(self, indices, key):
        inputs = torch.rand(len(self), 1, 2, 2, generator=torch.Generator().manual_seed(0))[indices]
        return inputs, inputs.flatten(1).argmax(1)


@DATA.register("outside_data")
def outside_data(device: torch.device, seed: int) -> Data:
    facts = {"num_classes": 4, "in_channels": 1, "image_size": 2}
    return Data(train=Corners(), evals={"test": Corners()}, model_defaults=facts, kind="images")


@OPTIMIZERS.register("outside_optimizer")
def outside_optimizer(model: nn.Module, params: list, *, lr: NonNegative = 0.5) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr, momentum=0.9)
'''
CHOICE = ["model=outside_model", "data=outside_data", "optimizer=outside_optimizer"]
SETTINGS = ["model.width=32", "optimizer.lr=0.4", "data.batch_size=32", "loop.max_epochs=20"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package as pip would install it, with its entry points."""
    site = tmp_path / "site"
    (site / "outside_package").mkdir(parents=True)
    (site / "outside_package" / "__init__.py").touch()
    (site / "outside_package" / "components.py").write_text(COMPONENTS)
    return site


def run(site: Path, *overrides: str) -> tuple[int, str]:
    """The exit code of ``python -m trainer`` in a process that finds the package, and all that it prints."""
    process = FORKS.Process(target=main_of_a_process, args=(site, list(overrides)))
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode, (site.parent / "out").read_text()


def main_of_a_process(site: Path, overrides: list[str]) -> None:
    os.chdir(site.parent)
    with open("out", "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.path.insert(0, str(site))
    sys.exit(main(overrides))


def test_by_name_of_the_module(package: Path) -> None:
    directory = package.parent / "run"
    line = ["plugins=[outside_package.components]", *CHOICE]
    code, said = run(package, *line, *SETTINGS, f"hydra.run.dir={directory}")
    assert code == 0, said
    state = content(directory)
    assert state["model"]["1.weight"].shape == (32, 4)
    assert state["values"]["counters"]["best"] > 0.9
    assert state["optimizer"]["param_groups"][0]["momentum"] == 0.9

    code, said = run(package, *line, "optimizer.momentum=0.1")
    assert code == 2
    assert said.startswith("error: unknown option optimizer.momentum")


def test_by_entry_point(package: Path) -> None:
    info = package / "outside_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-package\nVersion: 1.0\n")
    groups = [registry.entry_points for registry in EXTENSIBLE]
    kinds = "models data optimizers objectives callbacks schedules strategies sinks"
    assert set(groups) == {f"trainer.{kind}" for kind in kinds.split()}
    (info / "entry_points.txt").write_text(
        "\n".join(f"[{group}]\noutside = outside_package.components" for group in groups)
    )
    code, said = run(package, *CHOICE, *SETTINGS, f"hydra.run.dir={package.parent / 'run'}")
    assert code == 0, said
    assert "test/accuracy" in said


def test_a_config_folder_of_ones_own(package: Path) -> None:
    folder = package.parent / "my_conf"
    (folder / "model").mkdir(parents=True)
    (folder / "experiment").mkdir()
    (folder / "model" / "wide.yaml").write_text("name: outside_model\nwidth: 64\n")
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: wide\n  - override /data: outside_data\n"
        "loop:\n  max_epochs: 1\n"
    )
    directory = package.parent / "run"
    flags = ["--config-dir", str(folder), "plugins=[outside_package.components]", "experiment=mine"]
    code, said = run(package, *flags, "optimizer=sgd", f"hydra.run.dir={directory}")
    assert code == 0, said
    assert content(directory)["model"]["1.weight"].shape == (64, 4)
