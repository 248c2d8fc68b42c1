"""What is sent to Slurm and read from its answers, without a Slurm."""

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from launch import slurm_executor
from launch.options import SlurmOptions
from launch.slurm_executor import check_path, ended, explain, queued, script, submit, without_job_variables
from launch.sweep_dir import Sweep, SweepRun, read_sweep
from trainer.errors import ConfigError, UserError


def sweep(path: Path, **options: object) -> Sweep:
    return Sweep(path / "a sweep", path, SlurmOptions(dir="x", **options), [])  # type: ignore[arg-type]


def test_the_script_is_one_that_bash_reads(tmp_path: Path) -> None:
    text = script(
        sweep(
            tmp_path,
            nodes=2,
            gpus_per_node=4,
            time="1:00:00",
            sbatch={"reservation": "mine"},
            setup=["module load x"],
        ),
        6,
    )
    for line in (
        "#SBATCH --array=0-5%6",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --time=1:00:00",
        "#SBATCH --reservation=mine",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@120",
    ):
        assert line in text.splitlines()
    assert text.index("module load x") < text.index("srun")
    assert "partition" not in text
    assert "wckey" not in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_an_array_has_no_limit_unless_one_is_given(tmp_path: Path) -> None:
    assert "#SBATCH --array=0-599%600" in script(sweep(tmp_path), 600).splitlines()
    assert "#SBATCH --array=0-599%7" in script(sweep(tmp_path, array_parallelism=7), 600).splitlines()


@pytest.mark.parametrize("name", ["100%", "%j", "a\\b", "a\nb"])
def test_names_that_slurm_reads_otherwise(name: str, tmp_path: Path) -> None:
    check_path(tmp_path / "a b;$(c)ü")
    with pytest.raises(ConfigError, match=r"launch\.dir=.* is wrong") as refused:
        check_path(tmp_path / name / "sweep")
    assert str(refused.value).isprintable()


def test_nothing_in_a_name_is_executed(tmp_path: Path) -> None:
    """Bash runs the script in a directory of that name, with an srun that notes its words."""
    evil = "a b;$(touch x)`touch y` 'ü"
    text = script(
        Sweep(
            tmp_path / evil,
            tmp_path,
            SlurmOptions(
                dir="x", partition="$(touch z)", sbatch={"comment": "`touch z`; touch z"}, snapshot=False
            ),
            [],
        ),
        1,
    )
    (tmp_path / evil).mkdir()
    fake(tmp_path, "srun", f'printf "%s\\0" "$@" > {tmp_path}/words')
    before = {path.name for path in tmp_path.rglob("*")}
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": "/nowhere"}
    subprocess.run(["bash"], input=text, text=True, cwd=tmp_path, env=environment, capture_output=True)
    assert {path.name for path in tmp_path.rglob("*")} == {*before, "words"}
    assert str(tmp_path / evil / "jobs") in (tmp_path / "words").read_text().split("\0")


SINFO = {
    None: "short 1:00:00\nlong* 2-00:00:00\n",
    "gpu": "gpu infinite\n",
    "long": "long* 2-00:00:00\n",
    "none": "",
}
"""What sinfo prints of a partition."""


def fake_sinfo(command: list[str]) -> subprocess.CompletedProcess[str]:
    asked = next((word.partition("=")[2] for word in command if word.startswith("--partition=")), None)
    return subprocess.CompletedProcess(command, 0, SINFO[asked], "")


@pytest.mark.parametrize(
    ("partition", "limit"), [(None, "2-00:00:00"), ("gpu", "UNLIMITED"), ("long", "2-00:00:00")]
)
def test_the_longest_time(
    partition: str | None, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_executor, "call", fake_sinfo)
    text = script(sweep(tmp_path, partition=partition, time="max"), 1)
    assert f"#SBATCH --time={limit}" in text.splitlines()


def test_no_longest_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="Slurm does not answer: sinfo is not installed here"):
        script(sweep(tmp_path, time="max"), 1)
    monkeypatch.setattr(slurm_executor, "call", fake_sinfo)
    with pytest.raises(
        UserError, match=r"launch.time=max needs one partition, but launch.partition=none leads to 0"
    ):
        script(sweep(tmp_path, partition="none", time="max"), 1)


def test_one_run_is_no_array(tmp_path: Path) -> None:
    assert "--array" not in script(sweep(tmp_path), 1)


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("sbatch: error: invalid partition specified: nix", "launch.partition"),
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
            "launch.account",
        ),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", "launch.qos"),
        ("sbatch: error: Invalid generic resource (gres) specification", "launch.gpus_per_node"),
        (
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
            "launch.nodes",
        ),
        (
            "sbatch: error: Batch job submission failed: Requested time limit is invalid",
            "launch.time",
        ),
        ("sbatch: error: Invalid --time specification", "launch.time"),
        ("sbatch: error: Batch job submission failed: Invalid feature specification", "launch.constraint"),
        ("sbatch: error: Memory specification can not be satisfied", "launch.mem"),
        ("sbatch: error: Invalid --mem specification", "launch.mem"),
        ("sbatch: unrecognized option '--nix=1'", "launch.sbatch"),
    ],
)
def test_slurms_own_words_and_the_option(words: str, option: str) -> None:
    message = explain(words)
    assert message.startswith("Slurm refused the jobs: ")
    assert words.removeprefix("sbatch: ").removeprefix("error: ") in message
    assert option in message


def test_no_answer() -> None:
    words = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    assert explain(words).startswith("Slurm does not answer: ")


def fake(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_the_queue_with_and_without_accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fake(tmp_path, "squeue", "echo '7_0|RUNNING|None'; echo '7_1|PENDING|(Resources, Priority)'")
    assert queued(["7_0", "7_1", "7_2"]) == {
        "7_0": ("RUNNING", "None"),
        "7_1": ("PENDING", "(Resources, Priority)"),
    }
    fake(tmp_path, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert queued(["7"]) == {}
    fake(tmp_path, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(UserError, match="Unable to contact"):
        queued(["7"])
    fake(tmp_path, "sacct", "echo 'JobID|State'; echo '7_2|FAILED'; echo '7_[3,5-6%9]|CANCELLED by 0'")
    states = ended(["7_2", "7_3"])
    assert {f"7_{number}": states[f"7_{number}"] for number in (2, 3, 5, 6)} == {
        "7_2": "FAILED",
        "7_3": "CANCELLED by 0",
        "7_5": "CANCELLED by 0",
        "7_6": "CANCELLED by 0",
    }
    fake(tmp_path, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert ended(["7_2"]) == {}


def test_a_job_does_not_inherit_from_the_one_that_submits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    with without_job_variables():
        assert "SLURM_JOB_ID" not in os.environ
        assert os.environ["SLURM_CONF"] == "/etc/slurm.conf"
    assert os.environ["SLURM_JOB_ID"] == "5"


STAGES = [SweepRun("0_a", ["seed=0"]), SweepRun("1_b", ["seed=1"]), SweepRun("2_c", ["seed=2"], stage=1)]


def staged(path: Path, monkeypatch: pytest.MonkeyPatch, sbatch: str) -> Sweep:
    """A sweep of two stages, where sbatch keeps what it is given and then does this."""
    monkeypatch.setenv("PATH", f"{path}:{os.environ['PATH']}")
    fake(path, "srun", "true")
    fake(path, "sbatch", f'n=$(ls {path} | grep -c script); cp "$1" {path}/script_$n; {sbatch}')
    fake(path, "scancel", f'echo "$@" > {path}/cancelled')
    runs = [dataclasses.replace(run, jobs=[]) for run in STAGES]
    found = Sweep(path / "sweep", path, SlurmOptions(dir="x", snapshot=False), runs)
    found.jobs.mkdir(parents=True)
    for run in runs:
        found.directory(run).mkdir()
    return found


def test_a_stage_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = staged(tmp_path, monkeypatch, "echo Submitted batch job 1$n")
    submit(found, found.runs)
    assert [run.jobs for run in read_sweep(found.path).runs] == [["10_0"], ["10_1"], ["11"]]
    first, second = ((tmp_path / f"script_{n}").read_text().splitlines() for n in (0, 1))
    assert not any("dependency" in line for line in first)
    assert "#SBATCH --dependency=afterany:10" in second
    assert not (tmp_path / "cancelled").exists()


def test_a_stage_that_is_refused_takes_the_one_before_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = "[ $n = 0 ] && echo Submitted batch job 10 || { echo 'sbatch: error: no room' >&2; exit 1; }"
    found = staged(tmp_path, monkeypatch, answer)
    with pytest.raises(UserError, match="no room"):
        submit(found, found.runs)
    assert (tmp_path / "cancelled").read_text().split() == ["10_0", "10_1"]
