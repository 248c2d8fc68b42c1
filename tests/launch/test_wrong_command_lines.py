"""Every mistake in a launch: exit code 2, one line that helps, nothing submitted, nothing left on disk."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cli import main

WRONG = [
    # the launch
    ("launch=slrm", "did you mean slurm"),
    ("launch.partitionn=x", "unknown option launch.partitionn; did you mean partition"),
    ("launch=local launch.partition=x", "unknown option launch.partition"),
    ("launch.nodes=0", "launch.nodes=0 is wrong: it must be an integer >= 1"),
    ("launch.time=[1]", "launch.time=[1] is wrong"),
    ("launch.nodes=1,2", "launch takes one value"),
    ("launch=local,slurm", "launch takes one value"),
    ("launch.dir=. seed=0", "exists already"),
    ("hydra.run.dir=x", "below launch.dir"),
    ("dry_run=true", "python -m launch --dry-run"),
    ("--cfg job", "--cfg is for python -m trainer"),
    ("--no-such-flag", "--no-such-flag"),
    ("launch.nodes=2", "choose parallel=ddp"),
    ("parallel=fsdp", "set launch.gpus_per_node"),
    (
        "launch.runs_per_job=2 launch.gpus_per_node=2",
        "launch.gpus_per_node=2 give a run 2: set launch.runs_per_job=1",
    ),
    ("launch.runs_per_job=2 launch.nodes=2 parallel=ddp", "launch.runs_per_job=2 is for runs of one process"),
    ("launch=local launch.runs_per_job=2 launch.gpus_per_node=2", "is for runs of one process"),
    ("launch.runs_per_job=8", "the job has launch.cpus_per_task=4: set at least 8"),
    # a run, as python -m trainer says it
    ("modell=cnn", "unknown option modell; did you mean model"),
    ("optimizer=adafisher,adamm", "unknown option optimizer=adamm; did you mean"),
    ("optimizer.lr=1e-3,1e-2,-1 seed=range(3)", "optimizer.lr=-1 is wrong"),
    ("loop.max_steps=[1", "cannot read"),
    # a comparison
    ("compare optimizer=sgd,adamm", "did you mean"),
    ("compare optimizer=sgd,adamw budget_from=lion", "unknown contender 'lion'"),
    ("compare optimizer=sgd,adamw tune.lr=log(1,2)", "tune.lr"),
    ("compare optimizer=sgd,adamw compare.dir=x", "the launcher chooses the folders"),
    ("compare optimizer=sgd,adamw launch.gpus_per_node=2", "2 processes"),
    ("compare optimizer=sgd,adamw launch.runs_per_job=2", "its jobs share nothing"),
    ("compare optimizer=sgd,adamw parallel=ddp", "use parallel=none"),
    ("compare optimizer=sgd,adamw launch.partitionn=x", "unknown option launch.partitionn"),
    # the other commands
    ("stats x", "unknown command stats; did you mean status"),
    ("status", "DIR"),
    ("status .", "has no sweep.json in it"),
    ("rerun . --failed --incomplete", "not allowed with"),
    ("wait nowhere", "has no sweep.json in it"),
]


@pytest.mark.parametrize(("line", "hint"), WRONG, ids=[line for line, _ in WRONG])
def test_one_line_and_nothing_left(
    line: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[[int, str], None],
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(main(line.split(" ")), hint)
    assert list(tmp_path.iterdir()) == []


def test_slurm_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["seed=0", "launch.snapshot=false"]) == 2
    assert capsys.readouterr().err.startswith("error: sbatch is not installed here")
    assert list(tmp_path.iterdir()) == []
