"""Comparisons as jobs, one for each seed."""

import json
from pathlib import Path

import pytest
import yaml

from launch.cli import main
from launch.compose_comparison import compose_comparison
from launch.run_states import run_states
from launch.sweep_dir import read_sweep
from trainer.compare.arguments import parse_command
from trainer.report.__main__ import main as report
from trainer.report.read_runs import read_runs
from trainer.rundir.status import read_status

pytestmark = pytest.mark.slow
LOCAL = ["compare", "launch=local", "launch.gpus_per_node=0", "launch.snapshot=false", "device=cpu"]
TINY = ["model.widths=[4]", "monitor.sinks=[jsonl]", "checkpoint.keep_best=false", "loop.log_every=2"]


def test_each_job_measures_its_own_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    words = ["optimizer=sgd,adamw", "seed=3,4", "budget_from=sgd", "loop.max_steps=20", f"launch.dir={sweep}"]
    assert main([*LOCAL, *TINY, *words]) == 0
    printed = capsys.readouterr().out
    assert f"python -m trainer.report {sweep}/*/runs --by optimizer.name\n" in printed
    assert [row.state for row in run_states(read_sweep(sweep))[0]] == ["finished", "finished"]
    for seed, names in (
        (3, ["0_sgd,seed=3", "1_adamw,seed=3"]),
        (4, ["2_adamw,seed=4", "3_sgd,seed=4"]),  # another one is first
    ):
        folder = sweep / f"{seed - 3}_seed={seed}"
        (reference,) = read_runs([folder / "reference"])
        budget = float(f"{reference.evaluations['test/loss'][-1].seconds:.4g}")
        runs = read_runs([folder / "runs"])
        assert sorted(run.path.name for run in runs) == names
        assert all(run.config["loop.max_time"] == budget for run in runs)
    assert report([*map(str, sweep.glob("*/runs")), "--by", "optimizer.name", "--json"]) == 0
    assert {each["group"]: each["counted"] for each in json.loads(capsys.readouterr().out)["groups"]} == {
        "sgd": 2,
        "adamw": 2,
    }
    assert main(["rerun", str(sweep)]) == 0
    assert "nothing to rerun" in capsys.readouterr().out


def test_all_jobs_tune_with_a_seed_that_none_of_them_compares() -> None:
    words = [*LOCAL, *TINY, "optimizer=sgd,adamw", "seed=3,4", "tune.lr=[1,2]", "launch.dir=x"]
    _, points, keys = compose_comparison(words[1:])
    commands = [parse_command(point.overrides) for point in points]
    assert keys == ["optimizer.name"]
    assert [(each.tuning_seed, each.own_seeds) for each in commands] == [(5, [3]), (5, [4])]


def test_jobs_search_together_before_the_seeds_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    sweep = tmp_path / "sweep"
    words = ["optimizer=sgd", "seed=3,4", "loop.max_steps=6", "budget_from=sgd", "tune.search=random"]
    words += ["tune.trials=2", "tune.lr=log(1e-3,0.1)", "tune.parallel=2", "launch.array_parallelism=2"]
    assert main([*LOCAL, *TINY, *words, f"launch.dir={sweep}"]) == 0
    started = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("start ")]
    assert started == ["0_search,", "1_search,", "2_seed=3,", "3_seed=4,"]
    assert [row.state for row in run_states(read_sweep(sweep))[0]] == ["finished"] * 4
    trials = read_runs([sweep / "search" / "tune"])
    assert [run.state for run in trials] == ["finished"] * 2
    assert len({run.config["loop.max_time"] for run in trials}) == 1
    assert {run.seed for run in trials} == {5}
    ended = [read_status(sweep / name)["time"] for name in ("0_search", "1_search")]
    for number, seed in enumerate((3, 4)):
        runs = read_runs([sweep / f"{number + 2}_seed={seed}" / "runs"])
        assert [(run.state, run.seed) for run in runs] == [("finished", seed)]
        assert runs[0].config["optimizer.lr"] in [run.config["optimizer.lr"] for run in trials]
        assert runs[0].updated > max(ended)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tune.parallel=2", "tune.lr=[1,2]"], "tune.parallel=2 needs tune.search=tpe"),
        (["tune.parallel=0"], "tune.parallel=0 is wrong: it must be an integer >= 1"),
        (["tune.parallel=1", "tune.parallel=2"], "tune.parallel is given twice"),
        (["tune.dir=x"], "tune.dir=x: the launcher chooses the folders"),
        (["compare.seeds=[]"], "compare.seeds=[]: the launcher chooses the folders"),
    ],
)
def test_mistakes_of_a_search(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    search = [] if words[-1] == "tune.lr=[1,2]" else ["tune.search=tpe", "tune.trials=2", "tune.lr=log(1,2)"]
    assert main([*LOCAL, *search, *words, f"launch.dir={tmp_path / 'sweep'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_contenders_are_frozen_when_it_is_launched(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    broken = ["data=text", f"data.path={tmp_path / 'later.txt'}", "model=gpt"]  # fails in the job
    assert main([*LOCAL, *broken, "optimizer=sgd,adamw", "loop.max_steps=2", f"launch.dir={sweep}"]) == 1
    (row,) = run_states(read_sweep(sweep))[0]
    assert row.state == "failed"
    assert "later.txt" in row.reason
    record = yaml.safe_load((sweep / "0_seed=0" / "comparison.yaml").read_text())
    assert [c["config"]["optimizer"]["name"] for c in record["contenders"]] == ["sgd", "adamw"]
