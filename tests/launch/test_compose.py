"""From overrides to the runs of a sweep."""

import pytest

from launch.compose import compose_sweep, point_names
from launch.options import LocalOptions, SlurmOptions
from trainer.config.compose import (
    compose,
    compose_points,
    hydra_session,
    parse_arguments,
    sweep_points,
    without_hydra,
)


def test_a_grid_is_composed_point_by_point() -> None:
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
    assert [(p.config.optimizer["name"], p.config.seed, p.config.optimizer["lr"]) for p in points] == [
        (name, seed, 0.1) for name in ("adamw", "sgd") for seed in (0, 1)
    ]


def test_one_run() -> None:
    options, points = compose_sweep(["launch=local", "seed=3"])
    assert isinstance(options, LocalOptions)
    assert [point.name for point in points] == ["0_run"]
    assert points[0].config.seed == 3


def test_names_are_fit_for_directories() -> None:
    assert point_names([["data.path=/a/b c"], ["data.path=/d"]]) == ["0_data.path=-a-b-c", "1_data.path=-d"]
    long = point_names([["x=" + "a" * 500], ["x=b"]])[0]
    assert len(long) < 200


@pytest.mark.parametrize(
    "grid",
    [
        "optimizer=adamw,sgd seed=1,2 name=x",
        "experiment=shakespeare_gpt,fashion_mnist_cnn data.batch_size=32,64 seed=1,2",
        "model=gpt,cnn loop.ema=0.9,null plugins=[]",
        "~schedule.warmup seed=1,2",
    ],
)
def test_points_are_composed_as_one_by_one(grid: str) -> None:
    args = parse_arguments([])
    points = sweep_points(grid.split())
    with hydra_session(args) as session:
        single = [without_hydra(compose(session, args, point)) for point in points]
        assert compose_points(session, args, points) == single
