"""A step is saved before it is evaluated and shown: what fails then costs no training."""

from pathlib import Path
from typing import Any

import pytest

from tests.data.pictures import cats_and_dogs
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


def test_a_picture_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the middle of an epoch: what was trained until then is kept, and goes on once it can be."""
    root, run = cats_and_dogs(tmp_path / "pictures", 16, 2), tmp_path / "run"
    picture = root / "train" / "cat" / "7.jpg"
    whole = picture.read_bytes()
    line = [
        *(
            "data=image_folder",
            f"data.root={root}",
            "data.image_size=8",
            "data.resize=8",
            "data.batch_size=4",
        ),
        *("data.num_workers=0", "optimizer=sgd", "model.widths=[4]", "loop.max_steps=16"),
        *("monitor.sinks=[console,jsonl]", "monitor.predictions=0"),
    ]
    assert main([*line, f"hydra.run.dir={tmp_path / 'undisturbed'}"]) == 0
    picture.write_bytes(b"no picture")
    capsys.readouterr()
    assert main([*line, f"hydra.run.dir={run}"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {picture} cannot be decoded ")
    assert err.count("\n") == 1
    assert saved(run) == read_status(run)["step"] > 0
    picture.write_bytes(whole)
    assert main([*line, f"hydra.run.dir={run}"]) == 0
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
