"""Comparisons on the digits, with real processes and tiny budgets."""

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from trainer.compare.__main__ import main
from trainer.compare.arguments import parse_command
from trainer.compare.contenders import rotated
from trainer.compare.planning import plan
from trainer.compare.runner import Runner, has_ended
from trainer.errors import UserError
from trainer.report.read_runs import RecordedRun, read_run, read_runs
from trainer.rundir.status import read_status, write_status

TINY = ["model.widths=[4]", "monitor.sinks=[jsonl]", "checkpoint.keep_best=false", "loop.log_every=2"]


def compare(capsys: pytest.CaptureFixture[str], folder: Path, *argv: str) -> dict[str, Any]:
    assert main([*TINY, *argv, f"compare.dir={folder}", "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def by_start(runs: list[RecordedRun]) -> list[str]:
    """The names of the runs in the order in which they trained."""
    return [
        run.path.name for run in sorted(runs, key=lambda run: (run.path / "metrics.jsonl").stat().st_mtime)
    ]


@pytest.mark.slow
def test_equal_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["optimizer=adafisher,sgd", "seed=0,1", "loop.max_steps=2", "compare.baseline=sgd"]
    found = compare(capsys, tmp_path / "c", *words)
    assert (found["metric"], found["by"], found["seconds"]) == ("test/accuracy", ["optimizer.name"], None)
    assert [(g["group"], g["counted"], g["steps"]) for g in found["groups"]] == [
        ("adafisher", 2, 2),
        ("sgd", 2, 2),
    ]
    (comparison,) = found["comparisons"]
    assert (comparison["first"], comparison["other"]) == ("sgd", "adafisher")
    assert comparison["verdict"].startswith("Too few runs ")
    runs = read_runs([tmp_path / "c" / "runs"])
    assert by_start(runs) == [
        "0_adafisher,seed=0",
        "1_sgd,seed=0",
        "2_sgd,seed=1",
        "3_adafisher,seed=1",
    ]
    assert len({run.process for run in runs}) == 4, "each in a process of its own"
    assert not any("Memory" in note for note in found["notes"])
    page = (tmp_path / "c" / "report" / "report.md").read_text()
    assert "Command: python -m trainer.compare" in page


@pytest.mark.slow
def test_equal_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["optimizer=sgd,adamw", "loop.max_steps=30", "budget_from=sgd"]
    found = compare(capsys, tmp_path / "c", *options)
    reference = read_run(tmp_path / "c" / "reference" / "0_sgd,seed=0")
    seconds = reference.evaluations["test/loss"][-1].seconds
    assert found["seconds"] == pytest.approx(seconds, rel=1e-3)
    for run in read_runs([tmp_path / "c" / "runs"]):
        assert run.config["loop.max_time"] == found["seconds"]
        assert run.config["loop.max_steps"] is None
        last = run.evaluations["test/loss"]
        assert last[-1].seconds >= found["seconds"], "no run ends before"
        assert last[-1].step > 0


@pytest.mark.slow
def test_a_published_table_in_quick_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Contenders that differ in their own budgets, too, are told apart by what is left, which is the optimizer."""
    recipes = "experiment=cifar_cnn_adafisher,cifar_cnn_adam"
    words = ["table=cifar_cnn", recipes, "quick=images", "model=cct2_cifar", "seed=0", "loop.max_steps=2"]
    assert main([*words, f"compare.dir={tmp_path / 'c'}", "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert found["by"] == ["optimizer.name"]
    assert [g["group"] for g in found["groups"]] == ["adafisher", "adam"]
    assert found["seconds"] > 0
    assert found["published"] == [], "the data are made up"


@pytest.mark.slow
def test_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SGD at a rate of 1e-9 learns nothing, so that 0.1 must win; so must AdamW's 1e-2."""
    grids = ["tune.lr=[1e-9,1e-8,1e-2]", "tune.lr.sgd=[1e-9,0.1,1e-8]"]
    found = compare(
        capsys,
        tmp_path / "c",
        "optimizer=adamw,sgd",
        "seed=4",
        "loop.max_steps=25",
        "data.holdout=0.2",
        *grids,
    )
    assert found["tuned"] == {"adamw": {"lr": 1e-2}, "sgd": {"lr": 0.1}}
    trials = read_runs([tmp_path / "c" / "tune"])
    assert {run.seed for run in trials} == {5}
    assert by_start(trials)[:4] == [
        "0_adamw,lr=1e-09,seed=5",
        "1_sgd,lr=1e-09,seed=5",
        "2_sgd,lr=0.1,seed=5",
        "3_adamw,lr=1e-08,seed=5",
    ]
    runs = read_runs([tmp_path / "c" / "runs"])
    assert {(run.config["optimizer.name"], run.config["optimizer.lr"], run.seed) for run in runs} == {
        ("adamw", 1e-2, 4),
        ("sgd", 0.1, 4),
    }
    assert {run.config["data.holdout"] for run in [*trials, *runs]} == {0.2}
    assert (found["metric"], found["by"]) == ("test/accuracy", ["optimizer.name"])
    (sensitivity,) = found["sensitivities"]
    assert (sensitivity["metric"], sensitivity["option"]) == ("val/accuracy", "optimizer.lr")
    edges = {curve["group"]: curve["at_edge"] for curve in sensitivity["curves"]}
    assert edges == {"adamw": True, "sgd": True}
    assert sum("at the edge" in note for note in found["notes"]) == 2
    assert (tmp_path / "c" / "report" / "val_accuracy_against_optimizer.lr.png").exists()
    page = (tmp_path / "c" / "report" / "report.md").read_text()
    assert (
        "optimizer.lr of each: the best of 3 trials by val/accuracy, with seed 5, on 20% of the training"
        in page
    )


@pytest.mark.slow
def test_a_failed_trial_is_not_chosen_and_a_failed_run_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate of 1e30 makes everything infinite."""
    options = ["optimizer=sgd", "loop.max_steps=25", "loop.max_bad_steps=2"]
    found = compare(capsys, tmp_path / "tuned", *options, "tune.lr=[1e30,0.1]")
    assert found["tuned"] == {"sgd": {"lr": 0.1}}
    found = compare(capsys, tmp_path / "failed", *options, "optimizer.lr=1e30,0.1")
    failed, fine = found["groups"]
    assert (failed["failed"], fine["finished"]) == (1, 1)


@pytest.mark.slow
def test_a_trial_whose_options_exclude_each_other_has_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["optimizer=adafisher", "loop.max_steps=2", "tune.rule=[orthogonal,paper]"]
    found = compare(capsys, tmp_path / "c", *argv, "tune.decoupled=[true,false]")
    failed = [run for run in read_runs([tmp_path / "c" / "tune"]) if run.state == "failed"]
    assert [run.config["optimizer.rule"] for run in failed] == ["orthogonal"]
    assert failed[0].config["optimizer.decoupled"] is False
    assert "decoupled" in str(failed[0].error)
    assert found["tuned"]["adafisher"] != {"rule": "orthogonal", "decoupled": False}


@pytest.mark.slow
def test_what_a_run_settles_as_it_starts_does_not_make_it_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number of micro-batches, and that it resumes; then the reference fails, and is made up for."""
    argv = ["optimizer=sgd", "loop.max_steps=20", "loop.accumulate=auto", "checkpoint.resume=none"]
    first = compare(capsys, tmp_path / "c", *argv, "budget_from=sgd")
    reference = tmp_path / "c" / "reference" / "0_sgd,seed=0"
    write_status(reference, "failed", step=20, error="no space left on device")
    assert compare(capsys, tmp_path / "c", *argv, "budget_from=sgd")["seconds"] == first["seconds"]
    assert read_status(reference)["state"] == "finished"


def crash(_: Path, log: Path) -> None:
    """The body of a process that ends before its run has begun."""
    log.write_text("crashed: the disk is gone\n")
    sys.exit(1)


def test_a_crash_at_the_start_is_no_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the run was interrupted before."""
    [each] = parse_command(["optimizer=sgd"]).contenders
    planned = plan(tmp_path / "0", each, {}, 0, None)
    write_status(planned.path, "preempted", step=3)
    monkeypatch.setattr("trainer.compare.runner.train", crash)
    with Runner(tmp_path, Console(quiet=True), 1) as runner, pytest.raises(UserError, match="disk is gone"):
        runner.run([planned], "run")


@pytest.mark.slow
def test_it_goes_on_where_it_was_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "c"
    options = ["loop.max_epochs=15", "loop.eval_every=5"]
    argv = ["optimizer=sgd,adamw,adam", *options]

    def interrupt() -> None:
        """While the second run trains."""
        while read_status(folder / "runs" / "1_adamw,seed=0").get("state") != "running":
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    assert main([*TINY, *argv, f"compare.dir={folder}"]) == 75
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("interrupted; resume with: python -m trainer.compare ")
    states = {run.path.name: run.state for run in read_runs([folder / "runs"])}
    assert states == {
        "0_sgd,seed=0": "finished",
        "1_adamw,seed=0": "preempted",
        "2_adam,seed=0": "queued",
    }
    first = (folder / "runs" / "0_sgd,seed=0" / "status.json").read_text()
    found = compare(capsys, folder, *argv)
    assert [group["counted"] for group in found["groups"]] == [1, 1, 1]
    assert (folder / "runs" / "0_sgd,seed=0" / "status.json").read_text() == first, "it did not run again"
    # The interrupted run ends with the numbers of one that was not.
    (undisturbed,) = compare(capsys, tmp_path / "undisturbed", "optimizer=adamw", *options)["groups"]
    (interrupted,) = (group for group in found["groups"] if group["group"] == "adamw")
    assert interrupted["final_mean"] == undisturbed["final_mean"]


@pytest.mark.slow
def test_a_search_prunes_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first trial is stopped and goes on as the same: others with its rate have the same values."""
    pytest.importorskip("optuna")
    folder = tmp_path / "c"
    argv = [
        *("optimizer=sgd", "plugins=[tests.slurm.plugins]", "loop.max_steps=50", "loop.eval_every=10"),
        *(
            "tune.search=random",
            "tune.trials=4",
            "tune.prune=asha",
            "tune.lr=[1e-9,0.1]",
            "data.batch_size=32",
        ),
    ]
    words = [*TINY, *argv, "monitor.sinks=[jsonl,slow]", f"compare.dir={folder}"]

    def interrupt() -> None:
        while not any(read_status(run).get("metrics") for run in (folder / "tune").glob("0_*")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    assert main(words) == 75
    capsys.readouterr()
    (stopped,) = (folder / "tune").iterdir()
    assert read_status(stopped)["state"] == "preempted"
    assert main([*words, "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    runs = read_runs([folder / "tune"])
    assert runs[0].path == stopped
    assert len(json.loads((stopped / "environment.json").read_text())["sessions"]) == 1
    assert [run.state for run in runs].count("pruned") == found["search"]["sgd"]["pruned"] > 0
    assert found["search"]["sgd"]["trials"] == len(runs) == 4
    values = [[point.value for point in run.evaluations["val/accuracy"]] for run in runs]
    for run, own in zip(runs, values, strict=True):
        status = read_status(run.path)
        assert (run.path / "checkpoints" / f"step_{status['step']:08d}").is_dir()
        if run.state == "pruned":
            (decided,) = re.findall(r"by asha, after (1|4) evaluations?$", status["error"])
            others = [other[int(decided) - 1] for other in values if len(other) >= int(decided)]
            assert own[int(decided) - 1] < max(others)
        else:
            assert len(own) == 5
        twins = [
            v
            for v, other in zip(values, runs, strict=True)
            if other.config["optimizer.lr"] == run.config["optimizer.lr"]
        ]
        assert all(a == b for twin in twins for a, b in zip(own, twin, strict=False))
    assert len({run.config["optimizer.lr"] for run in runs}) < 4
    page = (folder / "report" / "report.md").read_text()
    assert f"sgd: lr={found['tuned']['sgd']['lr']}; 4 trials in " in page
    assert f" {found['search']['sgd']['pruned']} pruned, with " in page


def test_what_has_ended() -> None:
    assert has_ended({"state": "finished"})
    assert has_ended({"state": "pruned"})
    assert has_ended({"state": "failed", "error": "10 steps in a row were not finite"})
    assert not has_ended({"state": "failed", "error": "KeyboardInterrupt: "})
    assert not any(has_ended({"state": state}) for state in ("running", "preempted"))
    assert not has_ended({})


@pytest.mark.slow
def test_what_is_frozen_counts_and_another_command_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "c"
    compare(capsys, folder, "optimizer=sgd", "loop.max_steps=2")
    shutil.rmtree(folder / "runs")
    record = yaml.safe_load((folder / "comparison.yaml").read_text())
    record["contenders"][0]["config"]["loop"]["max_steps"] = 3  # as if conf/ had been edited since
    (folder / "comparison.yaml").write_text(yaml.safe_dump(record))
    assert compare(capsys, folder, "optimizer=sgd", "loop.max_steps=2")["groups"][0]["steps"] == 3
    assert main(["optimizer=adamw", f"compare.dir={folder}"]) == 2
    assert (
        "holds another comparison, which is resumed by: python -m trainer.compare" in capsys.readouterr().err
    )
    (folder / "comparison.yaml").write_text(yaml.safe_dump({**record, "format": 2}))
    assert main(["optimizer=sgd", f"compare.dir={folder}"]) == 2
    assert "comparison.yaml has format 2, but this version" in capsys.readouterr().err
    (folder / "comparison.yaml").write_text("command: [")
    assert main(["optimizer=sgd", f"compare.dir={folder}"]) == 2
    assert "comparison.yaml cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["optimizer=adamw,sgd", "budget_from=sgd", "schedule.warmup=20"], "loop.max_time does not fix"),
        (["optimizer=adamw,sgd", "tune.lrr=[1,2]"], "unknown option optimizer.lrr; did you mean lr?"),
        (["optimizer=adamw,sgd", "tune.lr=[1,-2]"], "optimizer.lr=-2 is wrong: it must be a number >= 0"),
        (
            ["optimizer=adamw,sgd", "data=text", "model=gpt", "data.path=nowhere"],
            "data.path=nowhere cannot be",
        ),
    ],
)
def test_a_mistake_leaves_nothing(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, f"compare.dir={tmp_path / 'c'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["loop.max_steps=1", f"compare.dir={tmp_path / 'file' / 'c'}"]) == 2
    assert "c cannot be made: " in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "budget_from=" in capsys.readouterr().out


def test_every_contender_begins_a_round() -> None:
    assert [rotated("abc", i) for i in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
