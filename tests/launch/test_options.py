"""The options of a launch: the YAML files say what the code says."""

import pytest
from omegaconf import OmegaConf

from launch.options import KINDS, LocalOptions, SlurmOptions, check_launch
from trainer.config.compose import CONF
from trainer.errors import ConfigError
from trainer.options import REQUIRED, options_of


@pytest.mark.parametrize("name", KINDS)
def test_every_option_with_its_default(name: str) -> None:
    values = OmegaConf.to_container(OmegaConf.load(CONF / "launch" / f"{name}.yaml"), resolve=False)
    defaults = {key: option.default for key, option in options_of(KINDS[name]).items()}
    assert defaults.pop("dir") is REQUIRED
    assert values.pop("dir").startswith("outputs/sweeps/")
    assert values == defaults


def test_a_kind_for_every_file() -> None:
    assert {path.stem for path in (CONF / "launch").glob("*.yaml")} == set(KINDS)


def test_one_process_for_each_gpu() -> None:
    assert SlurmOptions(dir="x", nodes=3, gpus_per_node=8).tasks == 24
    assert SlurmOptions(dir="x", nodes=3, gpus_per_node=0).tasks == 3
    assert LocalOptions(dir="x", gpus_per_node=2).tasks == 2


def test_units_as_slurm_takes_them() -> None:
    options = check_launch({"name": "slurm", "dir": "x", "time": "1-12:00:00", "mem": "64G"})
    assert isinstance(options, SlurmOptions)
    assert (options.time, options.mem) == ("1-12:00:00", "64G")


@pytest.mark.parametrize(
    "options",
    [{"partition": "gpu\nrm -rf x"}, {"time": "1\r"}, {"sbatch": {"nice": "5\n"}}, {"sbatch": {"a\nb": 5}}],
)
def test_an_option_of_several_lines(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"launch\..* is wrong: it must be one line") as refused:
        check_launch({"name": "slurm", "dir": "x", **options})
    assert str(refused.value).isprintable()


def test_an_option_of_the_other_kind() -> None:
    with pytest.raises(ConfigError, match=r"unknown option launch\.partition"):
        check_launch({"name": "local", "dir": "x", "partition": "gpu"})
