"""The table of docs/abilities.md is true: all of its cells that are quick to try, and some of those on ranks."""

from pathlib import Path

import pytest
import torch

from tests.optim.abilities import documented, tried, tried_on_ranks
from tests.optim.trials import ON_RANKS, OPTIMIZERS, TRIALS, Failed, Run, attempt, case_of, expect_same_end
from trainer.optim import param_groups
from trainer.training import build

CONFIGS = Path(__file__).parents[2] / "conf/optimizer"
QUICK = [column for column in TRIALS if column not in (*ON_RANKS, "compile")]
ON_TWO = ["adafisher", "kfac", "sam_sgd", "lbfgs"]


def test_every_optimizer_is_in_the_table() -> None:
    assert {name.split()[0] for name in OPTIMIZERS} == {path.stem for path in CONFIGS.glob("*.yaml")}
    assert set(documented()) == {(name, column) for name in OPTIMIZERS for column in TRIALS}


def test_no_cell_is_wrong() -> None:
    assert [cell for cell in documented().values() if cell.startswith("no")] == []


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_cells_of_one_process(name: str) -> None:
    if name.startswith("pytorch_optimizer"):
        pytest.importorskip("pytorch_optimizer")
    written = documented()
    assert tried([name], QUICK) == {(name, column): written[name, column] for column in QUICK}


@pytest.mark.ranks
def test_cells_on_ranks() -> None:
    written = documented()
    expected = {(name, column): written[name, column] for name in ON_TWO for column in ON_RANKS}
    assert tried_on_ranks(ON_TWO, ON_RANKS) == expected


def test_what_does_not_work_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "load_state_dict", lambda *_: None)
        assert attempt(case_of("sgd"), "exact resume").startswith("no: Failed: /")
    monkeypatch.setattr(build, "param_groups", lambda model, _: param_groups(model, True))
    assert attempt(case_of("sgd"), "no decay of norms, biases").startswith("no: Failed: weight decay")


def test_an_end_is_the_same_but_for_a_share_of_the_way() -> None:
    run = Run({"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([4.0, 5.0])})
    expect_same_end(run, Run(run.begin, {"w": torch.tensor([4.0, 5.4])}), 0.1)
    for other in (5.6, float("nan")):
        with pytest.raises(Failed):
            expect_same_end(run, Run(run.begin, {"w": torch.tensor([4.0, other])}), 0.1)
