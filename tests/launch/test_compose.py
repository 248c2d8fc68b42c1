"""From overrides to the runs of a sweep."""

from math import prod
from pathlib import Path

import pytest
import yaml

from launch.compose import SweepPoint, compose_sweep, point_names
from launch.options import LocalOptions, SlurmOptions
from trainer.config.command_line import parse_arguments
from trainer.config.compose import compose, compose_grid, hydra_session, resolve


def frozen(point: SweepPoint, directory: Path) -> dict:
    """The config that a point leaves in its directory."""
    directory.mkdir()
    point.freeze(directory)
    return yaml.safe_load((directory / "config.yaml").read_text())


def test_a_grid_is_composed_point_by_point(tmp_path: Path) -> None:
    options, points = compose_sweep(
        [
            "optimizer=adamw,sgd",
            "seed=range(2)",
            "optimizer.lr=0.1",
            "parallel=ddp",
            "launch.nodes=2",
            "launch.dir=here",
        ]
    )
    assert isinstance(options, SlurmOptions)
    assert (options.nodes, options.dir) == (2, "here")
    assert [point.name for point in points] == [
        "0_optimizer=adamw,seed=0",
        "1_optimizer=adamw,seed=1",
        "2_optimizer=sgd,seed=0",
        "3_optimizer=sgd,seed=1",
    ]
    configs = [frozen(point, tmp_path / point.name) for point in points]
    assert [(c["optimizer"]["name"], c["seed"], c["optimizer"]["lr"]) for c in configs] == [
        (name, seed, 0.1) for name in ("adamw", "sgd") for seed in (0, 1)
    ]


def test_one_run(tmp_path: Path) -> None:
    options, points = compose_sweep(["launch=local", "seed=3"])
    assert isinstance(options, LocalOptions)
    assert [point.name for point in points] == ["0_run"]
    assert frozen(points[0], tmp_path / "run")["seed"] == 3


def test_names_are_fit_for_directories() -> None:
    assert point_names([["data.path=/a/b c"], ["data.path=/d"]]) == ["0_data.path=-a-b-c", "1_data.path=-d"]
    long = point_names([["x=" + "a" * 500], ["x=b"]])[0]
    assert len(long) < 200
    for name in point_names([["x=" + "ä" * 120], ["x=" + "漢" * 120]]):
        assert len(name.encode()) < 200


@pytest.mark.parametrize(
    "grid",
    [
        "optimizer=adamw,sgd seed=1,2 name=x",
        "experiment=shakespeare_gpt,fashion_mnist_cnn data.batch_size=32,64 seed=1,2",
        "model=gpt,cnn loop.ema=0.9,null plugins=[]",
        "~schedule.warmup seed=1,2",
    ],
)
def test_a_grid_is_composed_as_its_points_are_one_by_one(grid: str) -> None:
    args = parse_arguments([])
    points = compose_grid(args, grid.split())
    assert len(points) == prod(len(word.split(",")) for word in grid.split() if "," in word)
    with hydra_session(args) as session:
        assert [point.config for point in points] == [
            resolve(compose(session, args, point.overrides)) for point in points
        ]
