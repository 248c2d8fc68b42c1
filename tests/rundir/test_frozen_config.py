"""A config as it is frozen in a run directory."""

from pathlib import Path

import yaml

from trainer.rundir.frozen_config import again, freeze

CONFIG = {"seed": 3, "optimizer": {"name": "sgd", "lr": 1e-7}, "loop": {"ema": None}}


def read(path: Path) -> object:
    return yaml.safe_load(path.read_text())


def test_it_is_the_config_in_its_order_with_the_directory_and_the_command(tmp_path: Path) -> None:
    freeze(tmp_path, CONFIG, ["seed=3", "optimizer=sgd"])
    frozen = read(tmp_path / "config.yaml")
    assert frozen == {**CONFIG, "hydra": {"run": {"dir": str(tmp_path)}, "output_subdir": None}}
    assert list(frozen) == [*CONFIG, "hydra"]
    (head, *_) = (tmp_path / "config.yaml").read_text().splitlines()
    assert head.startswith("# ")
    assert head.endswith(again(tmp_path))
    assert read(tmp_path / "overrides.yaml") == ["seed=3", "optimizer=sgd"]


def test_a_start_without_overrides_keeps_those_of_the_first(tmp_path: Path) -> None:
    freeze(tmp_path, CONFIG, [])
    assert read(tmp_path / "overrides.yaml") == []
    freeze(tmp_path, CONFIG, ["seed=3"])
    freeze(tmp_path, {**CONFIG, "seed": 4}, [])
    assert read(tmp_path / "overrides.yaml") == ["seed=3"]
    assert read(tmp_path / "config.yaml")["seed"] == 4
