"""The command, on run directories made up for it."""

import csv
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from tests.report.fake import config, write_run
from trainer.cli.train import main as train
from trainer.report.__main__ import main
from trainer.rundir.frozen_config import freeze

PNG = b"\x89PNG\r\n\x1a\n"


def write_group(folder: Path, optimizer: str, finals: list[float], **options) -> None:
    for seed, final in enumerate(finals):
        path = folder / f"{optimizer}_{seed}"
        write_run(path, [final - 0.2, final + 0.01, final], optimizer__name=optimizer, seed=seed, **options)


def report(capsys: pytest.CaptureFixture[str], *argv: object) -> dict:
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def shown(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What a wide terminal shows, each run of blanks as one."""
    assert main([*map(str, argv)]) == 0
    return re.sub(r"\s+", " ", capsys.readouterr().out)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main([*map(str, argv)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


# Claims -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 5])
def test_identical_contenders_20_of_20(n: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(n)
    for attempt in range(20):
        for name in ("adamw", "also_adamw"):
            finals = [draw.gauss(0.9, 0.01) for _ in range(n)]
            write_group(tmp_path / str(attempt), name, finals)
        (comparison,) = report(capsys, tmp_path / str(attempt))["comparisons"]
        assert not comparison["claimed"]
        assert comparison["verdict"].startswith("No difference between")


def test_a_clearly_better_one_is_claimed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    write_group(tmp_path, "good", [draw.gauss(0.95, 0.005) for _ in range(5)])
    write_group(tmp_path, "bad", [draw.gauss(0.90, 0.005) for _ in range(5)])
    (comparison,) = report(capsys, tmp_path)["comparisons"]
    assert comparison["claimed"]
    assert comparison["verdict"].startswith("good is better than bad: +5.")


def test_contenders_are_compared_within_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, seconds, adamw, sgd in (("cnn", 0.01, 0.9, 0.8), ("mlp", 0.1, 0.5, 0.6)):
        own = {"model__name": model, "step_seconds": seconds}
        write_group(tmp_path / model, "adamw", [adamw, adamw + 0.001, adamw + 0.002], **own)
        write_group(tmp_path / model, "sgd", [sgd, sgd + 0.002, sgd + 0.001], **own)
    found = report(capsys, tmp_path)
    assert [(c["first"], c["other"], c["claimed"]) for c in found["comparisons"]] == [
        ("cnn adamw", "cnn sgd", True),
        ("mlp sgd", "mlp adamw", True),
    ]
    text = shown(capsys, tmp_path)
    assert "cnn adamw minus each other group of its task" in text
    assert "mlp sgd minus each other group of its task" in text
    assert "correction for 2 pairs of groups" in text
    assert "× 10.00" not in text, "the steps of one network are not measured by those of the other"
    sgd_alone = list(tmp_path.glob("*/sgd_*"))
    assert report(capsys, *sgd_alone)["comparisons"][0]["first"] == "cnn", "where they differ in nothing else"


def test_a_baseline_is_tested_against_the_others_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By scipy's test for pairs and Holm's correction by hand: three pairs with sgd, of six."""
    finals = {
        "sgd": [0.80, 0.82, 0.81, 0.83],
        "adamw": [0.86, 0.87, 0.88, 0.88],
        "muon": [0.85, 0.90, 0.86, 0.91],
        "lion": [0.79, 0.81, 0.83, 0.80],
    }
    for name, values in finals.items():
        write_group(tmp_path, name, values)
    found = report(capsys, tmp_path, "--baseline", "sgd", "--level", "0.95")["comparisons"]
    ps = {name: ttest_rel(finals["sgd"], finals[name]).pvalue for name in finals if name != "sgd"}
    ranked = sorted(ps, key=ps.__getitem__)
    corrected = {name: min(1.0, (3 - rank) * ps[name]) for rank, name in enumerate(ranked)}
    assert {c["other"]: c["p"] for c in found} == pytest.approx(corrected)
    assert {c["first"] for c in found} == {"sgd"}
    assert {c["other"] for c in found if c["claimed"]} == {"adamw", "muon"}
    assert [c["verdict"].split(":")[0] for c in found if c["other"] == "adamw"] == [
        "adamw is better than sgd"
    ]
    text = shown(capsys, tmp_path, "--baseline", "sgd", "--level", "0.95")
    assert "sgd minus each other group" in text
    assert "correction for 3 pairs of groups" in text


def test_a_baseline_in_each_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("cnn", "mlp"):
        for name, value in (("adamw", 0.9), ("sgd", 0.8)):
            finals = [value, value + 0.001, value + 0.003]
            write_group(tmp_path / model, name, finals, model__name=model)
    found = report(capsys, tmp_path, "--baseline", "sgd")["comparisons"]
    assert [(c["first"], c["other"]) for c in found] == [("cnn sgd", "cnn adamw"), ("mlp sgd", "mlp adamw")]
    for name, value in (("adamw", 0.9), ("sgd", math.nan)):
        write_group(tmp_path / "vit", name, [value] * 3, model__name="vit")
    last = report(capsys, tmp_path, "--baseline", "sgd")["comparisons"][-1]
    assert last["verdict"].startswith("vit adamw cannot be compared with vit sgd")
    assert "no group is called 'sdg'" in refused(capsys, tmp_path, "--baseline", "sdg")
    assert "'cnn' may be 'cnn adamw' or 'cnn sgd'" in refused(capsys, tmp_path, "--baseline", "cnn")


def test_a_loss_is_better_when_it_is_lower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_group(tmp_path, "good", [1.00, 1.02, 1.01, 1.00], metric="test/loss")
    write_group(tmp_path, "bad", [1.50, 1.51, 1.50, 1.52], metric="test/loss")
    (comparison,) = report(capsys, tmp_path)["comparisons"]
    assert comparison["verdict"].startswith("good is better than bad: -0.5")


def test_a_metric_that_only_the_runs_declare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report does not import the plugin by which f1 is better when higher, and shown in percent."""
    declared = {"f1": {"higher_is_better": True, "format": "percent"}}
    for name, f1, loss in (("good", 0.95, 2.0), ("bad", 0.90, 1.0)):  # bad is better by its loss
        for seed in range(5):
            path = write_run(
                tmp_path / f"{name}_{seed}",
                [f1 + 0.001 * seed * loss],
                metric="test/f1",
                declared=declared,
                optimizer__name=name,
                seed=seed,
            )
            with (path / "metrics.jsonl").open("a") as file:
                print(json.dumps({"kind": "evaluation", "step": 10, "test/loss": loss}), file=file)
    found = report(capsys, tmp_path, "--target", "92%")
    assert found["metric"] == "test/f1"
    assert found["comparisons"][0]["verdict"].startswith("good is better than bad: +5.20 pp")
    assert {group["group"]: group["reached"] for group in found["groups"]} == {"good": 5, "bad": 0}
    assert "95.40% ± " in shown(capsys, tmp_path)
    assert report(capsys, tmp_path, "--metric", "test/loss")["comparisons"][0]["first"] == "bad"


def test_without_a_primary_metric_one_that_is_better_when_higher_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    declared = {"f1": {"higher_is_better": True, "format": "percent"}}
    path = write_run(tmp_path / "run", [0.5], metric="test/f1", state="running", declared=declared)
    with (path / "metrics.jsonl").open("a") as file:
        print(json.dumps({"kind": "evaluation", "step": 10, "test/bleu": 1.0}), file=file)
    assert report(capsys, tmp_path)["metric"] == "test/f1"


def test_a_likely_one_is_not_claimed_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_group(tmp_path, "good", [0.95, 0.96, 0.97])
    write_group(tmp_path, "bad", [0.90, 0.92, 0.91])
    (comparison,) = report(capsys, tmp_path)["comparisons"]
    assert not comparison["claimed"]
    low, high = (
        comparison["difference_mean"] + sign * comparison["difference_half_interval"] for sign in (-1, 1)
    )
    assert low < 0 < high
    assert comparison["verdict"].endswith(
        "If it is real and of this size, about 1 more seed of each would show it."
    )
    (comparison,) = report(capsys, tmp_path, "--level", "95%")["comparisons"]
    assert comparison["claimed"]
    assert comparison["difference_mean"] > comparison["difference_half_interval"]


def test_the_standard_deviation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_group(tmp_path, "good", [0.95, 0.96, 0.97])
    assert report(capsys, tmp_path)["groups"][0]["final_std"] == pytest.approx(0.01)
    text = shown(capsys, tmp_path, "--spread", "std")
    assert "96.00% ± 1.00%" in text
    assert "Mean ± the standard deviation over finished runs." in text
    assert "96.00% ± 2.48%" in shown(capsys, tmp_path)


def test_a_level_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'5' is not between 0.5 and 1" in refused(capsys, tmp_path, "--level", "5")


def test_two_runs_are_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_group(tmp_path, "good", [0.990, 0.991])
    write_group(tmp_path, "bad", [0.100, 0.101])
    (comparison,) = report(capsys, tmp_path)["comparisons"]
    assert comparison["verdict"] == "Too few runs to compare good and bad: 2, where 3 of each are needed."


def test_the_same_bits_are_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        write_group(tmp_path, name, [0.91, 0.92, 0.93])
    assert not report(capsys, tmp_path)["comparisons"][0]["claimed"]


def test_a_diverged_group_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_group(tmp_path, "good", [0.5, 0.51, 0.52], metric="test/loss")
    write_group(tmp_path, "bad", [0.5, float("nan"), 0.52], metric="test/loss")
    (comparison,) = report(capsys, tmp_path)["comparisons"]
    assert comparison["verdict"].startswith("bad cannot be compared")


def test_a_run_that_ended_without_a_finite_value_has_diverged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_group(tmp_path, "good", [0.5, 0.51, 0.52], metric="test/loss")
    write_run(tmp_path / "bad", [0.5, 0.9, float("nan")], metric="test/loss", optimizer__name="bad")
    bad, good = report(capsys, tmp_path)["groups"]
    assert (bad["group"], bad["final_mean"], bad["best_mean"]) == ("bad", None, 0.5)
    assert good["final_mean"] == pytest.approx(0.51)
    out = tmp_path / "out"
    assert "│ bad │ 1 finished │ diverged │ 0.5000 │" in shown(capsys, tmp_path, "--out", out)
    assert (out / "test_loss.png").read_bytes().startswith(PNG)


# Runs as they are -------------------------------------------------------------------------------------------------


def test_forty_runs_with_nothing_hidden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    states = {3: "failed", 12: "failed", 30: "failed", 7: "running", 39: "running"}
    for i in range(40):
        write_run(
            tmp_path / f"{i}_run",
            [draw.gauss(0.9, 0.01) for _ in range(5)],
            state=states.get(i, "finished"),
            error="ValueError: broken" if i == 12 else None,
            optimizer__name=("a", "b", "c", "d")[i // 10],
            seed=i % 10,
        )
    found = report(capsys, tmp_path)
    assert [group["runs"] for group in found["groups"]] == [10, 10, 10, 10]
    assert [group["finished"] for group in found["groups"]] == [8, 9, 10, 8]
    assert [group["failed"] for group in found["groups"]] == [1, 1, 0, 1]
    assert [group["running"] for group in found["groups"]] == [1, 0, 0, 1]
    assert [Path(run["path"]).name for run in found["runs"]] == [f"{i}_run" for i in range(40)]
    text = shown(capsys, tmp_path)
    for i in states:
        assert f"{i}_run" in text
    assert "ValueError: broken" in text
    assert "1 of 10 runs of b failed" in text


def test_a_dead_process_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write_run(tmp_path / "dead", [0.5], state="running", pid=gone.pid)
    write_run(tmp_path / "alive", [0.5], state="running", seed=1)
    states = {Path(run["path"]).name: run["state"] for run in report(capsys, tmp_path)["runs"]}
    assert states == {"dead": "vanished", "alive": "running"}
    assert "its process is gone" in shown(capsys, tmp_path)


def test_a_half_written_line_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "run", [0.5, 0.6])
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "evaluation", "step": 30, "test/acc')
    found = report(capsys, tmp_path)
    assert found["groups"][0]["final_mean"] == 0.6
    assert any("1 unreadable line" in note for note in found["notes"])


def test_a_run_without_any_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", [0.5])
    early = write_run(tmp_path / "early", [], state="failed", seed=1)
    (early / "clock.jsonl").unlink()
    (early / "status.json").write_text('{"state": "fai')
    assert report(capsys, tmp_path)["groups"][0]["unknown"] == 1


def test_a_run_of_another_version_is_unknown_and_the_others_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run", [0.5])
    newer = write_run(tmp_path / "newer", [0.6], seed=1)
    (newer / "status.json").write_text('{"format": 2, "state": "finished"}')
    assert report(capsys, tmp_path)["groups"][0]["unknown"] == 1
    assert main([str(tmp_path)]) == 0
    assert "status.json has format 2, but" in capsys.readouterr().out


def test_an_unreadable_config_is_listed_and_the_others_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_group(tmp_path, "adamw", [0.5, 0.6])
    broken = write_run(tmp_path / "broken", [0.9])
    for content in (b"model: {name: cnn", b"a list, no mapping", b"\xff\xfe", b""):
        (broken / "config.yaml").write_bytes(content)
        found = report(capsys, tmp_path)
        assert found["groups"][0]["final_mean"] == pytest.approx(0.55)
        assert {Path(r["path"]).name: r["state"] for r in found["runs"]}["broken"] == "unreadable"
        assert "its config.yaml cannot be read" in shown(capsys, tmp_path)
    assert "cannot be read as the config of a run" in refused(capsys, broken)


def test_runs_that_a_launcher_has_queued_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_group(tmp_path, "adamw", [0.5, 0.6])
    (tmp_path / "waiting").mkdir()
    (tmp_path / "sgd").mkdir()
    freeze(tmp_path / "waiting", config(seed=2), ["seed=2"])
    freeze(tmp_path / "sgd", config(optimizer__name="sgd"), ["optimizer=sgd"])
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("defaults: [model: cnn]\nseed: 0\n")
    adamw, sgd = sorted(report(capsys, tmp_path)["groups"], key=lambda group: group["group"])
    assert (adamw["runs"], adamw["finished"], adamw["queued"]) == (3, 2, 1)
    assert (sgd["runs"], sgd["queued"], sgd["final_mean"]) == (1, 1, None)
    assert "2 finished, 1 queued" in (text := shown(capsys, tmp_path))
    assert "has not started" in text


def test_a_pipe_may_be_closed_early(tmp_path: Path) -> None:
    write_group(tmp_path, "adamw", [0.5, 0.6])
    for flags in (["--json"], []):
        command = [sys.executable, "-m", "trainer.report", str(tmp_path), *flags]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        process.wait()


def test_a_run_counts_once_however_often_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_group(tmp_path, "adamw", [0.5, 0.6])
    assert len(report(capsys, tmp_path, tmp_path / "adamw_0")["runs"]) == 2


def test_runs_that_the_trainer_has_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for optimizer in ("sgd", "adafisher"):
        command = [f"optimizer={optimizer}", "loop.max_steps=20", "model.widths=[4]", "monitor.sinks=[jsonl]"]
        assert train([*command, f"hydra.run.dir={tmp_path / optimizer}"]) == 0
    capsys.readouterr()
    found = report(capsys, tmp_path)
    assert (found["metric"], found["by"]) == ("test/accuracy", ["optimizer.name"])
    for group in found["groups"]:
        status = json.loads((tmp_path / group["group"] / "status.json").read_text())
        assert group["final_mean"] == status["metrics"]["test/accuracy"]
        assert group["finished"] == 1
        assert group["seconds_per_step"] > 0
        assert group["memory_mib"] > 0


def test_any_truncated_file_is_survived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "whole", [0.5, 0.6])
    path = write_run(tmp_path / "cut", [0.5, 0.6], seed=1)
    for name in ("metrics.jsonl", "clock.jsonl", "status.json", "environment.json"):
        whole = (path / name).read_bytes()
        for length in range(0, len(whole), 37):
            (path / name).write_bytes(whole[:length])
            assert report(capsys, tmp_path)["groups"][0]["runs"] == 2
        (path / name).write_bytes(whole)


# Targets, metrics, groups -----------------------------------------------------------------------------------------


def test_a_target_that_some_never_reach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, values in enumerate([[0.7, 0.9], [0.91, 0.92], [0.7, 0.8]]):
        write_run(tmp_path / f"some{seed}", values, seed=seed)
        write_run(tmp_path / f"none{seed}", [0.1, 0.2], seed=seed, optimizer__name="slow")
    write_run(tmp_path / "yet", [0.1], state="running", seed=9)
    slow, adamw = report(capsys, tmp_path, "--target", "90%")["groups"]
    assert (adamw["reached"], adamw["settled"]) == (2, 3)
    assert (adamw["steps_to_target"], adamw["seconds_to_target"]) == (20, 0.2)
    assert (slow["reached"], slow["settled"], slow["steps_to_target"]) == (0, 3, None)
    assert "0 of 3" in (text := shown(capsys, tmp_path, "--target", "0.9"))
    assert "not reached" in text


def test_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_group(tmp_path, "fast", [0.9, 0.9])
    write_group(tmp_path, "slow", [0.9, 0.9], step_seconds=0.025)
    fast, slow = report(capsys, tmp_path)["groups"]
    assert (fast["seconds_per_step"], slow["seconds_per_step"]) == pytest.approx((0.01, 0.025))
    assert fast["memory_mib"] == 503
    assert "× 2.50" in shown(capsys, tmp_path)


def test_what_the_report_calls_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_group(tmp_path, "adamw", [0.5, 0.7])
    (group,) = report(capsys, tmp_path)["groups"]
    assert (group["final_mean"], group["best_mean"]) == pytest.approx((0.6, 0.61))


def test_groups_that_mix_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for size in (32, 64):
        write_group(tmp_path / str(size), "adamw", [0.5, 0.6], data__batch_size=size)
    found = report(capsys, tmp_path, "--by", "optimizer")
    assert [group["counted"] for group in found["groups"]] == [4]
    assert "Groups mix runs that differ in data.batch_size." in found["notes"]


# What is written --------------------------------------------------------------------------------------------------


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_group(tmp_path / "runs", "adamw", [0.5, 0.6, 0.7])
    write_group(tmp_path / "runs", "sgd", [0.6, 0.7, 0.75])
    write_run(tmp_path / "runs" / "crashed", [0.1], state="failed", seed=7)
    out = tmp_path / "deep" / "out"
    shown(capsys, tmp_path / "runs", "--out", out, "--target", "0.6")
    rows = list(csv.DictReader((out / "report.csv").open()))
    assert [(row["group"], row["optimizer.name"], row["failed"]) for row in rows] == [
        ("adamw", "adamw", "1"),
        ("sgd", "sgd", "0"),
    ]
    assert float(rows[0]["final_mean"]) == pytest.approx(0.6)
    page = (out / "report.md").read_text()
    assert "| adamw | 3 finished, 1 failed |" in page
    for name in ("test_accuracy.png", "train_loss.png"):
        assert (out / name).read_bytes().startswith(PNG)
        assert f"]({name})" in page


@pytest.mark.filterwarnings("error")
def test_long_labels_leave_room_for_the_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trainer.report.plots import short_labels

    for width in (4, 8):
        for number, lr in enumerate((0.1, 0.2, 0.3)):
            path = f"/{'deep/' * 30}text_{width}"
            write_run(tmp_path / f"{width}_{number}", [0.5, 0.6], data__path=path, optimizer__lr=lr)
    shown(capsys, tmp_path, "--out", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 3
    assert short_labels(["adamw lr=0.1", "sgd"]) == ["adamw lr=0.1", "sgd"]
    assert short_labels(["cnn adamw widths=[4, 8]", "cnn sgd widths=[4, 16]"], 15) == [
        "adamw w…=[4, 8]",
        "sgd wid…[4, 16]",
    ]


def test_starts_without_torch() -> None:
    code = "import sys, trainer.report.__main__; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Bad input --------------------------------------------------------------------------------------------------------


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    write_group(tmp_path / "runs", "adamw", [0.5])
    write_group(tmp_path / "runs", "sgd", [0.5])
    runs = tmp_path / "runs"
    assert "empty contains no run" in refused(capsys, tmp_path / "empty")
    assert "is not a directory" in refused(capsys, tmp_path / "nowhere")
    assert "did you mean optimizer" in refused(capsys, runs, "--by", "optimiser")
    assert "did you mean test/accuracy" in refused(capsys, runs, "--metric", "test/acuracy")
    assert "--target: 'high' is neither a number" in refused(capsys, runs, "--target", "high")
    assert "--group" in refused(capsys, runs, "--group")
    assert "DIR" in refused(capsys)
    assert "cannot be written" in refused(capsys, runs, "--out", runs / "sgd_0" / "status.json")
    write_group(tmp_path / "text", "adamw", [2.0], metric="val/perplexity")
    assert "share no metric: adamw_0 has test/accuracy" in refused(capsys, runs, tmp_path / "text")
    write_run(tmp_path / "early" / "run", [], state="failed")
    assert "no run has been evaluated yet (1 failed)" in refused(capsys, tmp_path / "early")


def test_plots_need_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_group(tmp_path, "adamw", [0.5])
    monkeypatch.setattr("trainer.report.__main__.find_spec", lambda name: None)
    assert "--out needs the package matplotlib" in refused(capsys, tmp_path, "--out", tmp_path / "out")


def test_speeds_are_medians(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, shares in enumerate(((0.5, 0.1, 0.2), (0.4, 0.4, 0.4))):
        path = write_run(tmp_path / str(seed), [0.5], seed=seed)
        lines = [{"kind": "train", "step": n, "seconds": n, "data_wait": s} for n, s in enumerate(shares)]
        (path / "clock.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (group,) = report(capsys, tmp_path)["groups"]
    assert group["data_wait"] == pytest.approx(0.3)
    assert group["mfu"] is None
    text = shown(capsys, tmp_path)
    assert "waits for data" in text
    assert "30.00%" in text
    assert "MFU" not in text
