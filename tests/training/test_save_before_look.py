"""A step is saved before it is evaluated and shown: what fails then costs no training."""

from pathlib import Path
from typing import Any

import pytest

from tests.training.kill_and_resume import compare
from trainer.checkpoint import storage
from trainer.cli.train import main
from trainer.rundir.status import read_status
from trainer.training import loop
from trainer.training.samples import SampleOutputs

TINY = ["model.widths=[4]", "data.batch_size=64", "monitor.sinks=[console,jsonl]", "loop.max_steps=22"]
EVERY = [*TINY, "loop.eval_every=5", "checkpoint.every_steps=10"]


def fail_once(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """Lets the evaluation of a step fail, the first time."""
    evaluate, pending = loop.evaluate_with_average, [error]

    def failing(parts: Any, *rest: Any) -> dict[str, float]:
        if pending and parts.counters.step == step:
            raise pending.pop()
        return evaluate(parts, *rest)

    monkeypatch.setattr(loop, "evaluate_with_average", failing)


def saved(run: Path) -> int:
    """The step of the newest checkpoint."""
    return int(storage.list_checkpoints(run / "checkpoints")[0].name.removeprefix("step_"))


@pytest.mark.parametrize(
    ("step", "error"),
    [(22, RuntimeError("out of memory")), (10, SystemExit(9)), (15, RuntimeError("out of memory"))],
    ids=["at the end", "where a checkpoint is due, and nothing can be saved afterwards", "elsewhere"],
)
def test_an_evaluation_fails(
    step: int, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*EVERY, f"hydra.run.dir={tmp_path / 'undisturbed'}"]) == 0
    run = tmp_path / "run"
    fail_once(monkeypatch, step, error)
    if isinstance(error, Exception):
        assert main([*EVERY, f"hydra.run.dir={run}"]) == 1
    else:
        with pytest.raises(SystemExit):
            main([*EVERY, f"hydra.run.dir={run}"])
    assert (saved(run), read_status(run)["state"]) == (step, "failed")
    assert main([*EVERY, f"hydra.run.dir={run}"]) == 0
    assert compare(run, tmp_path / "undisturbed") == []


def test_outputs_cannot_be_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("probability tensor contains inf")

    monkeypatch.setattr(SampleOutputs, "show", refuse)
    assert main([*TINY, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    said = "warning: no outputs are shown of step 22: RuntimeError: probability tensor contains inf"
    assert said in capsys.readouterr().out
    assert saved(tmp_path / "run") == 22
