"""Sweeps on a real Slurm: jobs that are disturbed finish with the bits of those that are not."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from launch.cli import main
from tests.slurm.cluster import Launched, slurm, until
from tests.slurm.conftest import LONGER, ROOT
from tests.slurm.plugins import GATES, opened, reached
from tests.training.kill_and_resume import compare
from trainer.report.read_runs import read_runs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


# What Slurm refuses, and what else hinders a launch: one line each, and nothing half-done ---------------------


def refused(capsys: pytest.CaptureFixture[str], directory: Path, overrides: str) -> str:
    """The only line that a launch prints, which leaves neither a job nor a directory."""
    capsys.readouterr()
    assert main([*LONGER.split(), *overrides.split(), f"launch.dir={directory}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert not directory.exists()
    return err


@pytest.mark.parametrize(
    ("overrides", "words", "option"),
    [
        ("launch.partition=nix", "invalid partition", "launch.partition"),
        ("launch.nodes=99 parallel=ddp", "processors requested", "launch.nodes"),
        ("launch.gpus_per_node=9 parallel=ddp", "node configuration", ".gpus_per_node"),
        ("launch.mem=999G", "emory", "launch.mem"),
        ("launch.time=soon", "Invalid --time", "launch.time"),
        ("launch.constraint=fast", "feature", "launch.constraint"),
        ("launch.exclude=node9", "node", "launch.exclude"),
        ("launch.sbatch={nix:1}", "unrecognized option", "launch.sbatch"),
        ("launch.partition=nix seed=0,1", "invalid partition", "launch.partition"),
    ],
)
def test_slurms_own_words_and_the_option(
    overrides: str,
    words: str,
    option: str,
    sweeps: dict[str, Launched],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = refused(capsys, tmp_path / "sweep", overrides)
    assert error.startswith("error: Slurm refused the jobs: ")
    assert words in error
    assert option in error
    assert slurm("squeue", "-h", "-n", "sweep") == ""


@pytest.fixture
def down(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens where the commands look for Slurm."""
    lab = Path(os.environ["SLURM_CONF"]).parent
    conf = re.sub(r"(?m)^SlurmctldPort=.*", "SlurmctldPort=1", (lab / "slurm.conf").read_text())
    (tmp_path / "slurm.conf").write_text(f"{conf}\nMessageTimeout=2\n")
    for name in ("gres.conf", "cgroup.conf"):
        (tmp_path / name).write_text((lab / name).read_text())
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))


def test_slurm_is_down(down: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, tmp_path / "sweep", "").startswith("error: Slurm does not answer: ")


def test_status_while_slurm_is_down(
    sweeps: dict[str, Launched], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweeps["short"]
    assert sweep.wait()[0].state == "finished"
    request.getfixturevalue("down")
    capsys.readouterr()
    assert main(["status", str(sweep.directory)]) == 0
    out = capsys.readouterr().out
    assert "1 finished" in out
    assert "Slurm does not answer" in out


@pytest.fixture
def full_disk(disks: tuple[Path, Path], sweeps: dict[str, Launched]) -> Path:
    disk = disks[1]
    if not disk.is_mount():
        pytest.skip("may not mount a tmpfs here")
    (disk / "full").write_bytes(b"0" * 900_000)
    return disk


def test_no_room_for_the_sweep(full_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No space left on device" in refused(capsys, full_disk / "sweep", "")


# Jobs that run and are disturbed -------------------------------------------------------------------------------
# The restarts of one run take a minute: it is disturbed by fixtures that other tests name first, and looked at last.


@pytest.fixture(scope="session")
def signalled(sweeps: dict[str, Launched]) -> Launched:
    """A job of four tasks on two nodes, while it trains, gets a signal."""
    run = sweeps["disturbed"]
    run.waits_at(5)
    assert len(run.pids()) == 4
    slurm("scancel", "--signal=USR2", run.job)
    return run


@pytest.fixture(scope="session")
def killed(signalled: Launched) -> Launched:
    """In its next start, one of its tasks is killed."""
    run = signalled
    run.waits_at(15)
    os.kill(run.pids()[-1], signal.SIGKILL)
    opened(run.run, 15).touch()
    return run


def test_one_fails_and_is_run_again(
    sweeps: dict[str, Launched], signalled: Launched, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweeps["failing"]
    missing = sweep.directory.with_name("missing.txt")
    rows = sweep.wait()
    assert [row.state for row in rows] == ["finished", "failed"]
    assert str(missing) in rows[1].reason
    assert main(["wait", str(sweep.directory)]) == 1

    missing.write_text("that is the question " * 200)
    capsys.readouterr()
    assert main(["rerun", str(sweep.directory), "--failed"]) == 0
    assert capsys.readouterr().out == f"rerunning {rows[1].name}\n"
    again = sweep.wait()
    assert [row.state for row in again] == ["finished", "finished"]
    assert again[0].job == rows[0].job
    assert again[1].job != rows[1].job


def test_cancelled_runs_stay_so_and_have_a_checkpoint(sweeps: dict[str, Launched]) -> None:
    run = sweeps["cancelled"]
    run.waits_at(5)
    assert main(["cancel", str(run.directory)]) == 0
    row = run.wait()[0]
    assert row.state == "cancelled"
    assert 5 <= row.step < 20
    assert list((run.run / "checkpoints").glob(f"step_*{row.step}"))


def test_a_grid_as_an_array(sweeps: dict[str, Launched], capsys: pytest.CaptureFixture[str]) -> None:
    grid = sweeps["grid"]
    until(lambda: {row.slurm for row in grid.rows} == {"COMPLETED"}, 400, grid)
    rows = grid.rows
    assert [(row.state, row.slurm, row.step, row.restarts) for row in rows] == [
        ("finished", "COMPLETED", 6, 0)
    ] * 6
    assert {row.job for row in rows} == {f"{rows[0].job.split('_')[0]}_{index}" for index in range(6)}
    assert "#SBATCH --array=0-5%2" in next((grid.directory / "jobs").glob("*.sh")).read_text()
    reported = {run.path.name: run for run in read_runs([grid.directory])}
    assert {row.name: row.step for row in rows} == {name: run.step for name, run in reported.items()}
    for row in rows:
        run = reported[row.name]
        assert run.state == "finished"
        assert row.value == pytest.approx(run.evaluations[row.metric][-1].value)
    assert main(["status", str(grid.directory)]) == 0
    assert "6 finished" in capsys.readouterr().out
    assert main(["wait", str(grid.directory)]) == 0


def test_only_the_owner_can_write_what_a_job_executes(sweeps: dict[str, Launched]) -> None:
    grid = sweeps["grid"]
    for folder in (grid.directory, grid.directory / "code", grid.directory / "jobs", grid.run):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_finished_run_that_is_started_again_does_nothing(
    sweeps: dict[str, Launched], killed: Launched
) -> None:
    grid = sweeps["grid"]
    assert grid.wait()[0].state == "finished"
    before = {path: path.stat().st_mtime_ns for path in grid.run.rglob("*") if path.name != "job.json"}
    job = grid.job
    slurm("scontrol", "requeue", job)
    until(lambda: "finished already at step 6" in grid.log(), 90, grid)
    until(lambda: slurm("squeue", "-h", "-j", job).strip() == "", 60, grid)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert grid.rows[0].state == "finished"


def test_a_comparison_is_a_job_for_each_seed(sweeps: dict[str, Launched]) -> None:
    run = sweeps["comparison"]
    until(lambda: [row.slurm for row in run.rows] == ["COMPLETED"] * 2, 400, run)
    for row in run.rows:
        assert row.state == "finished"
        runs = read_runs([run.directory / row.name / "runs"])
        assert [each.state for each in runs] == ["finished"] * 2
        assert len({each.config["loop.max_time"] for each in runs}) == 1


def test_jobs_share_a_search_of_which_one_is_preempted(sweeps: dict[str, Launched]) -> None:
    """A trial that was stopped is the same afterwards; the jobs of the seeds wait for those that search."""
    pytest.importorskip("optuna")
    run = sweeps["search"]
    trials = run.directory / "search" / "tune"
    until(lambda: len([path for path in trials.glob("*") if reached(path, 5).exists()]) == 2, 300, run)
    assert [row.slurm for row in run.rows[2:]] == ["PENDING"] * 2
    slurm("scancel", "--signal=TERM", run.job)

    def all_have_ended() -> bool:
        for path in [*trials.glob("*"), *run.directory.glob("*/runs/*")]:
            for step in GATES:
                opened(path, step).touch()
        return not any(row.is_active for row in run.rows)

    until(lambda: run.rows[0].restarts == 1, 200, run)
    until(all_have_ended, 400, run)
    assert [(row.name, row.state) for row in run.rows] == [
        (name, "finished") for name in ("0_search", "1_search", "2_seed=0", "3_seed=1")
    ]
    found = read_runs([trials])
    assert [(each.state, each.step) for each in found] == [("finished", 20)] * 3
    sessions = [json.loads((each.path / "environment.json").read_text()) for each in found]
    assert sorted(len(each.get("sessions", [])) for each in sessions) == [0, 0, 1]
    runs = read_runs([run.directory / row.name for row in run.rows[2:]])
    assert {each.config["optimizer.lr"] for each in runs} <= {each.config["optimizer.lr"] for each in found}
    assert [each.seed for each in runs] == [0, 1]


def test_without_accounts(
    sweeps: dict[str, Launched], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sacct").write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    (tmp_path / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    row = sweeps["unaccounted"].wait()[0]
    assert (row.state, row.slurm) == ("failed", None)
    assert "nowhere.txt" in row.reason


def test_no_room_for_a_checkpoint(sweeps: dict[str, Launched]) -> None:
    if "full disk" not in sweeps:
        pytest.skip("may not mount a tmpfs here")
    sweep = sweeps["full disk"]
    row = sweep.wait()[0]
    assert row.state == "failed", sweep.log()
    assert "No space left on device" in row.reason
    assert list(sweep.run.glob("checkpoints/step_*"))
    assert list(sweep.run.glob("checkpoints/.step_*")) == []


def test_what_was_submitted_is_what_runs(sweeps: dict[str, Launched]) -> None:
    """Code and configs were edited while the job was held in the queue."""
    sweep = sweeps["edited"]
    row = sweep.wait()[0]
    assert row.state == "finished", sweep.log()
    environment = json.loads((sweep.run / "environment.json").read_text())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    assert environment["git_commit"] == commit.strip()
    assert "optimizer.lr=0.25" in (sweep.run / "overrides.yaml").read_text()


def test_requeues_are_bounded(sweeps: dict[str, Launched]) -> None:
    row = sweeps["preempted"].wait()[0]
    assert (row.state, row.restarts) == ("failed", 2)
    assert re.fullmatch(r"stopped by SIGUSR2 at step \d+; reached launch\.max_requeues=2", row.reason)


def test_a_job_of_four_tasks_on_two_nodes_disturbed_twice(
    sweeps: dict[str, Launched], killed: Launched
) -> None:
    calm, run = sweeps["calm"], killed
    row = run.wait()[0]
    assert (row.state, row.restarts, row.step) == ("finished", 2, 20), row.reason
    assert calm.wait()[0].state == "finished"
    assert compare(run.run, calm.run) == []

    log = (run.run / "run.log").read_text()
    (stopped,) = re.findall(r"stopped by \w+ at step (\d+)", log)
    resumed, again = map(int, re.findall(r"from .*/step_(\d+)", log))
    assert resumed == int(stopped)  # no step twice after a signal
    assert 0 <= 15 - again < 4  # and after none only those since the last checkpoint
    identities = re.findall(
        r"hostname=(node\d), local_rank=(\d)\(2\), node=(\d)\(2\), global_rank=(\d)", all_logs(calm)
    )
    assert sorted((rank, node, local) for _, local, node, rank in identities) == [
        ("0", "0", "0"),
        ("1", "0", "1"),
        ("2", "1", "0"),
        ("3", "1", "1"),
    ]
    assert len({host for host, *_ in identities}) == 2


def all_logs(run: Launched) -> str:
    return "".join(path.read_text() for path in sorted((run.directory / "jobs").glob("*_log.out")))
