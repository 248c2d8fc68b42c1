"""From overrides to the runs of a sweep."""

from launch.options import LocalOptions, SlurmOptions
from launch.points import compose_sweep, point_names


def test_a_grid_is_composed_point_by_point() -> None:
    options, points = compose_sweep(
        ["optimizer=adamw,sgd", "seed=range(2)", "optimizer.lr=0.1", "launch.nodes=2", "launch.dir=here"]
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
