"""What a command line asks for, without running it."""

import re
from pathlib import Path

import pytest
import yaml

from trainer.compare.arguments import Command, parse_command
from trainer.compare.contenders import variant
from trainer.compare.grids import Interval
from trainer.compare.protocol import ComparisonRun
from trainer.compare.sentences import protocol_sentences
from trainer.compare.tables import FILE, expanded
from trainer.compare.tuning import Tuned
from trainer.compare.tuning_options import Search, corners
from trainer.errors import ConfigError, MissingExtra


def parse(*argv: str) -> Command:
    return parse_command(argv)


def test_contenders_are_all_that_is_swept_but_the_seed() -> None:
    command = parse(
        "optimizer=adafisher,sgd", "precision=fp32,bf16", "data.batch_size=32,64", "seed=range(2,5)"
    )
    assert [c.label for c in command.contenders] == [
        f"{optimizer} {precision} batch_size={size}"
        for optimizer in ("adafisher", "sgd")
        for precision in ("fp32", "bf16")
        for size in (32, 64)
    ]
    assert command.seeds == [2, 3, 4]
    assert command.tuning_seed == 5
    last = command.contenders[-1].config
    assert (last.optimizer["name"], last.precision.name, last.data["batch_size"]) == ("sgd", "bf16", 64)
    assert command.runs == 24


def test_a_config_file_of_ones_own_is_a_contender(tmp_path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "paper.yaml").write_text("defaults: [adafisher]\nrule: paper\n")
    command = parse("optimizer=adafisher,paper", "--config-dir", str(tmp_path), "budget_from=paper")
    assert [c.label for c in command.contenders] == ["adafisher", "paper"]
    assert [c.config.optimizer["rule"] for c in command.contenders] == ["orthogonal", "paper"]
    assert command.reference == "paper"


def test_a_baseline_has_the_name_of_its_group_in_the_report(tmp_path: Path) -> None:
    command = parse("optimizer=sgd,adafisher,adafisher_paper", "compare.baseline=adafisher_paper")
    assert command.baseline == "adafisher_paper"
    assert ComparisonRun(command, tmp_path).baseline == "adafisher rule=paper"


def test_runs_do_not_write_to_the_terminal() -> None:
    (only,) = parse("monitor.sinks=[console,jsonl]").contenders
    assert only.label == "adafisher"
    assert only.config.monitor.sinks == ["jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(yaml.safe_load(FILE.read_text())))
def test_a_table_is_its_recipes_with_the_time_of_the_reference(name: str) -> None:
    command = parse(f"table={name}", "monitor.sinks=[jsonl]")
    (recipes,) = [word for word in command.words if word.startswith("experiment=")]
    labels = [f"experiment={recipe}" for recipe in recipes.removeprefix("experiment=").split(",")]
    assert [c.label for c in command.contenders] == labels
    assert command.reference == labels[0]
    assert ("adam" if name == "imagenet" else "adafisher") in labels[0], "whose time the paper gives to all"
    assert command.seeds == ([0] if name == "imagenet" else [0, 1, 2, 3, 4])
    assert "monitor.sinks=[jsonl]" in command.words


def test_what_is_typed_has_precedence_over_a_table() -> None:
    recipes = "experiment=cifar_cnn_adafisher,cifar_cnn_sgd"
    words = ["seed=7", "table=cifar_cnn", recipes, "quick=images"]
    assert expanded(words) == ["budget_from=cifar_cnn_adafisher", "seed=7", recipes, "quick=images"]
    assert parse(*words).seeds == [7]


def test_trials() -> None:
    command = parse(
        "optimizer=adamw,sgd", "tune.lr=log(1e-3,0.1,3)", "tune.lr.sgd=[1,2,3]", "tune.weight_decay=[0,0.1]"
    )
    assert list(command.trials) == ["adamw", "sgd"]
    assert {len(trials) for trials in command.trials.values()} == {6}
    assert command.trials["sgd"][:3] == [
        {"lr": 1, "weight_decay": 0},
        {"lr": 1, "weight_decay": 0.1},
        {"lr": 2, "weight_decay": 0},
    ]
    assert command.tuned_options == ["optimizer.lr", "optimizer.weight_decay"]
    assert command.runs == 12 + 2


def test_a_report_names_what_was_chosen_of_a_grid() -> None:
    """Also of one that has no curve: of two values, or of none that are numbers."""
    command = parse("optimizer=adam,sgd", "seed=0", "tune.lr=[1e-3,1e-2]")
    tuned = Tuned({"sgd": {"lr": 0.01}, "adam": {"lr": 0.001}})
    assert "The best: adam lr=0.001, sgd lr=0.01." in protocol_sentences(command, None, tuned, [])


def test_what_is_tuned_leaves_something_to_tune_on() -> None:
    assert parse("tune.lr=[1,2]").contenders[0].config.data["holdout"] == 0.1
    assert parse("tune.lr=[1,2]", "data.holdout=0.3").contenders[0].config.data["holdout"] == 0.3
    assert parse("optimizer=adamw").contenders[0].config.data["holdout"] == 0


def test_a_search() -> None:
    pytest.importorskip("optuna")
    command = parse(
        "optimizer=adamw,sgd",
        "seed=1,2",
        "tune.search=tpe",
        "tune.trials=30",
        "tune.prune=asha",
        "tune.lr=log(1e-4,1e-1)",
        "tune.lr.sgd=lin(0,1)",
        "tune.weight_decay=[0,0.1]",
        "tune.dir=x",
        "compare.seeds=[2]",
    )
    assert command.search == Search(
        sampler="tpe",
        trials=30,
        pruner="asha",
        spaces={
            "adamw": {"lr": Interval("log", 1e-4, 0.1), "weight_decay": [0, 0.1]},
            "sgd": {"lr": Interval("lin", 0.0, 1.0), "weight_decay": [0, 0.1]},
        },
        folder=Path("x").absolute(),
    )
    assert command.trials == {}
    assert command.tuned_options == ["optimizer.lr", "optimizer.weight_decay"]
    assert (command.seeds, command.own_seeds, command.tuning_seed) == ([1, 2], [2], 3)
    assert command.runs == 60 + 2
    assert command.contenders[0].config.data["holdout"] == 0.1


def test_a_search_is_checked_at_its_corners() -> None:
    space = {"lr": Interval("log", 1e-4, 0.1), "betas": ["a", "b"]}
    assert list(corners(space)) == [
        {"lr": 1e-4, "betas": "a"},
        {"lr": 0.1, "betas": "a"},
        {"lr": 1e-4, "betas": "a"},
        {"lr": 1e-4, "betas": "b"},
    ]


def test_optuna_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.cli.common.find_spec", lambda package: None)
    with pytest.raises(MissingExtra, match=r"^tune.search=tpe needs the package optuna: .*\[search\]"):
        parse("tune.search=tpe", "tune.trials=3", "tune.lr=log(1,2)")


def test_a_variant_has_one_budget() -> None:
    (only,) = parse("loop.max_epochs=3").contenders
    timed = variant(only.config, {"lr": 0.5}, 7, 1.5)
    assert (timed.loop.max_epochs, timed.loop.max_steps, timed.loop.max_time) == (None, None, 1.5)
    assert (timed.seed, timed.optimizer["lr"], timed.optimizer["momentum"]) == (7, 0.5, 0.9)
    assert variant(only.config, {}, 0, None).loop.max_epochs == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("optimizer=adamw,sgd budget_from=sdg", "budget_from: unknown contender 'sdg'; did you mean sgd?"),
        (
            "optimizer=adamw,sgd compare.baseline=sdg",
            "compare.baseline: unknown contender 'sdg'; did you mean sgd?",
        ),
        (
            "optimizer=adamw,sgd precision=fp32,bf16 budget_from=sgd",
            "names sgd fp32 and sgd bf16: choose one",
        ),
        ("optimizer=adamw,adamx", "unknown option optimizer=adamx; did you mean"),
        (
            "optimizer=adamw,sgd tune.lr.adam=[1,2]",
            "tune.lr.adam: unknown contender 'adam'; did you mean adamw",
        ),
        (
            "optimizer=adamw,sgd tune.lr=[1,2] tune.lr.sgd=[1,2,3]",
            "the same number of trials, not adamw 2, sgd 3",
        ),
        ("optimizer=adamw,sgd tune.lr.sgd=[1,2,3]", "the same number of trials, not adamw 0, sgd 3"),
        ("optimizer=adamw,sgd tune.lr=0.1", "tune.lr=0.1 is wrong: it must be log"),
        ("tune.search=tpee tune.trials=3 tune.lr=log(1,2)", "unknown tune.search=tpee; did you mean tpe?"),
        (
            "tune.search=tpe tune.trials=0 tune.lr=log(1,2)",
            "tune.trials=0 is wrong: it must be an integer >= 1",
        ),
        (
            "tune.search=tpe tune.trials=1,2 tune.lr=log(1,2)",
            "tune.trials=1,2 is wrong: it must be an integer",
        ),
        ("tune.search=tpe tune.lr=log(1,2)", "tune.search=tpe needs tune.trials=NUMBER"),
        ("tune.search=tpe tune.trials=3", "adafisher has nothing to search: say where"),
        (
            "tune.search=tpe tune.trials=3 tune.lr.sgd=log(1,2) optimizer=adamw,sgd",
            "adamw has nothing to search: say where",
        ),
        (
            "tune.search=tpe tune.trials=3 tune.lr=log(1,2) tune.prune=hyperband",
            "unknown tune.prune=hyperband (known: asha, median)",
        ),
        ("tune.prune=asha tune.lr=[1,2]", "tune.prune needs tune.search=tpe"),
        ("tune.trials=3 tune.lr=[1,2]", "tune.trials needs tune.search=tpe"),
        (
            "tune.search=tpe tune.trials=3 tune.lr=log(1e-4,1,9)",
            "tune.lr=log(1e-4,1,9) is a grid, but tune.search chooses the values itself: write log(1e-4,1)",
        ),
        (
            "tune.search=tpe tune.trials=3 tune.lr=log(0,1)",
            "tune.lr=log(0,1) is wrong: it must be log(low,high)",
        ),
        ("tune.search=tpe tune.trials=3 tune.lr=0.1", "tune.lr=0.1 is wrong: it must be log(low,high)"),
        (
            "tune.search=tpe tune.trials=3 tune.lr=log(1,2) monitor.sinks=[]",
            "tune.search=tpe reads metrics.jsonl: monitor.sinks must have jsonl in it",
        ),
        (
            "tune.search=tpe tune.trials=3 tune.lr=log(1,2) tune.parallel=2",
            "tune.parallel is for python -m launch",
        ),
        ("seed=1,2 compare.seeds=[3]", "compare.seeds=[3]: the comparison has no seed 3 (known: [1, 2])"),
        ("seed=1,2 compare.seeds=3", "compare.seeds=3 is wrong: it must be a list of seeds of [1, 2]"),
        ("compare.seeds=[]", "compare.seeds=[] leaves only a search to be made, and needs tune.dir=FOLDER"),
        ("optimizer=adamw,adamw", "duplicate contender: adamw"),
        ("seed=1,1", "duplicate seed: seed=1"),
        ("seed=a,b", "seed=a is wrong: it must be an integer"),
        ("budget_from=sgd budget_from=sgd", "budget_from is given twice"),
        ("hydra.run.dir=x", "name its folder with compare.dir=FOLDER"),
        ("dry_run=true", "trainer.compare does not support dry_run"),
        ("--multirun", "a comparison takes no --multirun"),
        ("--config-path conf", "a comparison takes no --config-path"),
        ("--jsn", "--jsn"),
        ("table=cifar_cn", "unknown table=cifar_cn; did you mean cifar_cnn"),
        ("table=cifar_cnn table=cifar_vit", "table is given twice"),
        ("optimiser=adamw", "unknown option optimiser; did you mean optimizer"),
    ],
)
def test_mistakes(argv: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        parse(*argv.split())
    assert "\n" not in str(error.value)
