"""What a search tries, with runs that are a formula: it is near the best, the same each time, and fair."""

import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna")

from optuna.trial import TrialState

from tests.compare.toy import ToyRunner
from trainer.compare.arguments import Command, parse_command
from trainer.compare.runner import Interrupted
from trainer.compare.search import JOURNAL, SearchRun
from trainer.compare.tuning import best_of
from trainer.errors import DataError, UserError
from trainer.report.read_runs import read_run

TPE = ["tune.search=tpe", "tune.lr=log(1e-4,1)"]


def command(*argv: str, optimizer: str = "sgd") -> Command:
    return parse_command([f"optimizer={optimizer}", *argv])


def searched(folder: Path, asked: Command, runner: ToyRunner) -> SearchRun:
    run = SearchRun(asked, folder, runner)  # type: ignore[arg-type]
    run.run(None, to_the_end=True)
    return run


def bowl(options: dict[str, Any]) -> float:
    """The loss is best at a rate of 0.01 with a decay of 0.3."""
    return (math.log10(options["lr"]) + 2) ** 2 + (10 * options["weight_decay"] - 3) ** 2


def test_it_finds_what_a_fine_grid_finds(tmp_path: Path) -> None:
    """The best of 40 trials is among the best hundredth of 10,000 points, and better than 40 draws."""
    values = sorted(
        bowl({"lr": 10 ** (-4 + 4 * i / 99), "weight_decay": j / 99}) for i in range(100) for j in range(100)
    )
    best = {}
    for sampler in ("tpe", "random"):
        asked = command(*TPE[1:], f"tune.search={sampler}", "tune.trials=40", "tune.weight_decay=lin(0,1)")
        run = searched(tmp_path / sampler, asked, ToyRunner(bowl))
        found = best_of(asked, ["optimizer.name"], run.tried())
        assert 1e-4 <= found.best["sgd"]["lr"] <= 1
        best[sampler] = bowl(found.best["sgd"])
    assert best["tpe"] < values[100]
    assert best["tpe"] < best["random"]


def test_it_is_the_same_again_and_after_an_interruption(tmp_path: Path) -> None:
    asked = command(*TPE, "tune.trials=14", "tune.prune=asha", optimizer="adamw,sgd")

    def loss(options: dict[str, Any]) -> float:
        return abs(math.log10(options["lr"]) + 2)

    calm = ToyRunner(loss, evaluations=5)
    searched(tmp_path / "calm", asked, calm)
    again = ToyRunner(loss, evaluations=5)
    searched(tmp_path / "again", asked, again)
    assert again.order == calm.order
    assert len(calm.order) == 28
    trained: list[str] = []
    while True:
        some = ToyRunner(loss, evaluations=5, interrupted_at=7)
        try:
            searched(tmp_path / "interrupted", asked, some)
        except Interrupted:
            trained += some.order
        else:
            break
    trained += some.order
    assert list(dict.fromkeys(trained)) == calm.order
    assert len(trained) > 28, "some were trained in two parts"
    states = [
        [read_run(tmp_path / folder / "tune" / name).state for name in calm.order]
        for folder in ("calm", "interrupted")
    ]
    assert states[0] == states[1]
    assert {"finished", "pruned"} == set(states[0])


def test_every_contender_has_as_many_trials_in_turns(tmp_path: Path) -> None:
    asked = command(
        "tune.search=random",
        "tune.trials=4",
        "tune.lr=log(1e-4,1)",
        "tune.lr.sgd=[0.1,1]",
        "tune.momentum.sgd=lin(0,0.9)",
        optimizer="adamw,sgd,adam",
    )
    runner = ToyRunner(lambda options: options["lr"])
    run = searched(tmp_path, asked, runner)
    assert [name.split("_")[1].split(",")[0] for name in runner.order] == [
        *("adamw", "sgd", "adam"),
        *("sgd", "adam", "adamw"),
        *("adam", "adamw", "sgd"),
        *("adamw", "sgd", "adam"),
    ]
    tried = {
        label: [t.options for t in run.tried() if t.label == label] for label in ("adamw", "sgd", "adam")
    }
    assert tried["adamw"] == tried["adam"], "the same draws for all"
    assert {options["lr"] for options in tried["sgd"]} == {0.1, 1}
    assert all(0 <= options["momentum"] <= 0.9 for options in tried["sgd"])
    assert all(options.keys() == {"lr"} for options in tried["adam"])
    assert all(options["lr"] == float(f"{options['lr']:.4g}") for options in tried["adam"])


def test_asha_lets_the_best_quarter_go_on(tmp_path: Path) -> None:
    """Each decision is made anew from the losses alone."""
    asked = command(*TPE, "tune.trials=30", "tune.prune=asha")
    run = searched(tmp_path, asked, ToyRunner(lambda o: abs(math.log10(o["lr"]) + 2), evaluations=6))
    rungs: dict[int, list[float]] = {1: [], 4: []}
    for trial in run.tried():
        losses = [point.value for point in trial.run.evaluations["val/loss"]]
        expected = 6
        for at, seen in rungs.items():
            seen.append(losses[at - 1])
            if losses[at - 1] > sorted(seen)[max(len(seen) // 4, 1) - 1]:
                expected = at
                break
        assert len(losses) == expected
        assert trial.run.state == ("finished" if expected == 6 else "pruned")
        assert trial.run.error == (
            None if expected == 6 else f"by asha, after {at} evaluation{'s' * (at > 1)}"
        )
    found = best_of(asked, ["optimizer.name"], run.tried())
    cost = found.costs["sgd"]
    of_pruned = [len(t.run.evaluations["val/loss"]) for t in run.tried() if t.run.state == "pruned"]
    assert (cost.trials, cost.pruned, cost.failed) == (30, len(of_pruned), 0)
    assert len(of_pruned) > 15
    assert cost.seconds == sum(of_pruned) + 6 * (30 - len(of_pruned))
    assert cost.pruned_share == pytest.approx(sum(of_pruned) / cost.seconds)
    assert abs(math.log10(found.best["sgd"]["lr"]) + 2) < 0.5


def test_the_median(tmp_path: Path) -> None:
    asked = command(*TPE, "tune.trials=10", "tune.prune=median")
    run = searched(tmp_path, asked, ToyRunner(lambda o: o["lr"], evaluations=3))
    states = [trial.run.state for trial in run.tried()]
    assert states[:5] == ["finished"] * 5
    assert "pruned" in states


def test_failures_are_infinitely_bad_and_do_not_end_it(tmp_path: Path) -> None:
    def loss(options: dict[str, Any]) -> float:
        return math.inf if options["lr"] > 0.1 else math.nan if options["lr"] > 0.03 else -options["lr"]

    asked = command(*TPE, "tune.trials=20")
    run = searched(tmp_path, asked, ToyRunner(loss))
    told = run.studies["sgd"]._study.get_trials()
    assert {trial.state for trial in told} == {TrialState.COMPLETE}
    for tried, trial in zip(run.tried(), told, strict=True):
        lr = tried.options["lr"]
        assert tried.run.state == ("failed" if lr > 0.1 else "finished")
        assert trial.value == (math.inf if lr > 0.03 else pytest.approx(-lr))
    found = best_of(asked, ["optimizer.name"], run.tried())
    assert found.costs["sgd"].failed == sum(t.options["lr"] > 0.1 for t in run.tried()) > 0
    assert found.best["sgd"]["lr"] == max(t.options["lr"] for t in run.tried() if t.options["lr"] <= 0.03)


def test_two_processes_share_it_and_one_goes_on_with_what_the_other_left(tmp_path: Path) -> None:
    asked = command(*TPE, "tune.trials=4")
    first, second = (SearchRun(asked, tmp_path, ToyRunner(bowl)) for _ in range(2))  # type: ignore[arg-type]
    held = first.claim(None)
    other = second.claim(None)
    assert held is not None
    assert other is not None
    assert (held.trial.number, other.trial.number) == (0, 1)
    second.make(other)
    other.lock.release()
    held.lock.release()  # as when its process is gone
    left = second.claim(None)
    assert left is not None
    assert (left.trial.number, left.trial.options, left.planned) == (0, held.trial.options, held.planned)
    assert first.claim(None).trial.number == 2  # type: ignore[union-attr]
    left.lock.release()
    second.run(None, to_the_end=False)
    assert len(second.tried()) == 4
    assert second.studies["sgd"].untold == [2], "the other process has it"
    with pytest.raises(AssertionError, match="nobody to wait for"):
        second.run(None, to_the_end=True)


def test_what_is_in_a_list_reaches_the_run_as_it_is(tmp_path: Path) -> None:
    asked = command(
        "tune.search=random", "tune.trials=12", "tune.betas=[[0.9,0.99],[0.8,0.9]]", optimizer="adamw"
    )
    run = searched(tmp_path, asked, ToyRunner(lambda options: options["betas"][0]))
    betas = [trial.options["betas"] for trial in run.tried()]
    assert [0.9, 0.99] in betas
    assert [0.8, 0.9] in betas
    assert all(trial.run.config["optimizer.betas"] == trial.options["betas"] for trial in run.tried())


def test_another_search_is_refused(tmp_path: Path) -> None:
    searched(tmp_path, command(*TPE, "tune.trials=2"), ToyRunner(lambda options: 0.0))
    for other in (["tune.trials=3"], ["tune.trials=2", "tune.prune=asha"], ["tune.trials=2", "seed=9"]):
        with pytest.raises(UserError, match=r"holds another search of sgd, .*choose another tune\.dir"):
            SearchRun(command(*TPE, *other), tmp_path, ToyRunner(bowl))  # type: ignore[arg-type]
    (tmp_path / JOURNAL).write_text("no journal\n{}\n")
    with pytest.raises(UserError, match="cannot be read or written"):
        SearchRun(command(*TPE, "tune.trials=2"), tmp_path, ToyRunner(bowl))  # type: ignore[arg-type]


def test_without_evaluations_there_is_nothing_to_search_by(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no evaluation of val/loss in metrics\.jsonl"):
        searched(tmp_path, command(*TPE, "tune.trials=2"), ToyRunner(bowl, evaluations=0))
