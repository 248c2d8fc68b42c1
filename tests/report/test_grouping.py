"""What was swept is found in the configs."""

from itertools import product

import pytest

from tests.report.fake import run
from trainer.errors import ConfigError
from trainer.report.grouping import group, group_keys, swept_keys


def grid(**options) -> list:
    return [run(**dict(zip(options, point, strict=True))) for point in product(*options.values())]


def test_only_what_differs_is_swept() -> None:
    runs = grid(optimizer__name=["adamw", "sgd"], model__widths=[[8], [16, 32]], seed=[0, 1])
    assert set(swept_keys(runs)) == {"optimizer.name", "model.widths", "seed"}
    assert [g.label for g in group(runs, group_keys(None, runs))] == [
        "adamw widths=[8]",
        "adamw widths=[16, 32]",
        "sgd widths=[8]",
        "sgd widths=[16, 32]",
    ]


def test_names_and_directories_differ_unswept() -> None:
    runs = [run(name=f"run{i}", hydra={"run": {"dir": f"runs/{i}"}}) for i in range(3)]
    assert swept_keys(runs) == []
    assert [g.label for g in group(runs, group_keys(None, runs))] == ["adamw"]


def test_a_components_own_options_come_with_it() -> None:
    adamw = [run(optimizer={"name": "adamw", "lr": 0.001, "betas": [0.9, 0.99]}, seed=s) for s in range(2)]
    sgd = [run(optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.9}, seed=s) for s in range(2)]
    assert group_keys(None, adamw + sgd) == ["optimizer.name"]
    other = [run(optimizer={"name": "sgd", "lr": 0.2, "momentum": 0.9}, seed=s) for s in range(2)]
    labels = [g.label for g in group(adamw + sgd + other, group_keys(None, adamw + sgd + other))]
    assert labels == ["adamw lr=0.001", "sgd lr=0.1", "sgd lr=0.2"]


def test_other_options_that_differ_between_components_are_not_hidden() -> None:
    runs = [run(), run(optimizer__name="sgd", data__batch_size=128)]
    assert group_keys(None, runs) == ["optimizer.name", "data.batch_size"]


def test_like_ends_of_keys_are_told_apart() -> None:
    runs = [
        run(model={"name": "cnn", "rate": rate}, optimizer={"name": "sgd", "rate": 2 * rate})
        for rate in (1, 2)
    ]
    assert group(runs, group_keys(None, runs))[0].label == "model.rate=1 optimizer.rate=2"


def test_an_option_that_a_component_does_not_have_is_not_in_its_label() -> None:
    adafisher = [run(optimizer={"name": "adafisher", "rule": rule}) for rule in ("calibrated", "paper")]
    runs = [*adafisher, run(optimizer={"name": "sgd"})]
    labels = [g.label for g in group(runs, group_keys(None, runs))]
    assert labels == ["adafisher rule=calibrated", "adafisher rule=paper", "sgd"]


def test_by_a_group_an_option_or_several() -> None:
    runs = grid(optimizer__name=["adamw", "sgd"], data__batch_size=[32, 64], seed=[0, 1, 2])
    assert group_keys("optimizer", runs) == ["optimizer.name"]
    assert group_keys("data.batch_size,optimizer.name", runs) == ["data.batch_size", "optimizer.name"]
    adamw, sgd = group(runs, ["optimizer.name"])
    assert len(adamw.counted) == 6
    assert adamw.counted.keys() == sgd.counted.keys(), "pairs have the same seed and the same batch size"


def test_runs_are_pairs_whatever_rate_each_group_was_tuned_to() -> None:
    rates = {"calibrated": 0.01, "paper": 0.003}
    options = [{"name": "adafisher", "rule": rule, "lr": lr} for rule, lr in rates.items()]
    runs = [run(optimizer=option, seed=seed) for option in options for seed in (0, 1, 2)]
    first, second = group(runs, ["optimizer.rule"])
    assert len(first.counted) == 3
    assert first.counted.keys() == second.counted.keys()


def test_runs_are_pairs_whatever_budget_and_rate_the_job_of_a_seed_has_found() -> None:
    runs = [
        run(optimizer={"name": name, "lr": rate * (1 + seed)}, loop__max_time=12 + seed / 100, seed=seed)
        for name, rate in (("adamw", 1e-3), ("sgd", 0.1))
        for seed in (0, 1, 2)
    ]
    adamw, sgd = group(runs, ["optimizer.name"])
    assert len(adamw.counted) == 3
    assert adamw.counted.keys() == sgd.counted.keys()


def test_unknown_key_names_the_nearest() -> None:
    runs = grid(optimizer__name=["adamw", "sgd"], seed=[0, 1])
    with pytest.raises(ConfigError, match=r"no run has an option optimiser.*did you mean optimizer"):
        group_keys("optimiser", runs)


def test_a_run_that_was_repeated_counts_once() -> None:
    runs = grid(seed=[0, 1, 1, 1])
    (only,) = group(runs, group_keys(None, runs))
    assert (len(only.runs), len(only.counted), only.repeated) == (4, 2, 2)
