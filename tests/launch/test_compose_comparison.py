"""Comparisons as jobs, one for each seed."""

from pathlib import Path

import pytest
import yaml

from launch.cli import main
from launch.run_states import run_states
from launch.sweep_dir import read_sweep
from trainer.report.read_runs import read_runs

pytestmark = pytest.mark.slow
LOCAL = ["compare", "launch=local", "launch.gpus_per_node=0", "launch.snapshot=false", "device=cpu"]
TINY = ["model.widths=[4]", "monitor.sinks=[jsonl]", "checkpoint.keep_best=false", "loop.log_every=2"]


def test_each_job_measures_its_own_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    words = ["optimizer=sgd,adamw", "seed=3,4", "budget_from=sgd", "loop.max_steps=20", f"launch.dir={sweep}"]
    assert main([*LOCAL, *TINY, *words]) == 0
    assert f"python -m trainer.report {sweep}/*/runs" in capsys.readouterr().out
    assert [row.state for row in run_states(read_sweep(sweep))[0]] == ["finished", "finished"]
    for seed in (3, 4):
        folder = sweep / f"{seed - 3}_seed={seed}"
        (reference,) = read_runs([folder / "reference"])
        budget = float(f"{reference.evaluations['test/loss'][-1].seconds:.4g}")
        runs = read_runs([folder / "runs"])
        assert sorted(run.path.name for run in runs) == [f"0_sgd,seed={seed}", f"1_adamw,seed={seed}"]
        assert all(run.config["loop.max_time"] == budget for run in runs)
    assert main(["rerun", str(sweep)]) == 0
    assert "nothing to rerun" in capsys.readouterr().out


def test_contenders_are_frozen_when_it_is_launched(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    broken = ["data=text", f"data.path={tmp_path / 'later.txt'}", "model=gpt"]  # fails in the job
    assert main([*LOCAL, *broken, "optimizer=sgd,adamw", "loop.max_steps=2", f"launch.dir={sweep}"]) == 1
    (row,) = run_states(read_sweep(sweep))[0]
    assert row.state == "failed"
    assert "later.txt" in row.reason
    record = yaml.safe_load((sweep / "0_seed=0" / "comparison.yaml").read_text())
    assert [c["config"]["optimizer"]["name"] for c in record["contenders"]] == ["sgd", "adamw"]
