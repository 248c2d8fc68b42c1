"""Runs that share a job, without a cluster: programs of Slurm that only note what they are told."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import pytest

from launch import local_executor, pack, slurm_executor
from launch.cli import main
from launch.options import LocalOptions, SlurmOptions
from launch.pack import shares_of_job
from launch.pool import Pool
from launch.records import write_job
from launch.run_states import RunState, run_states
from launch.start import Share, core_shares
from launch.sweep_dir import Sweep, SweepRun, read_sweep
from tests.slurm.cluster import GATED, TINY, until
from tests.slurm.plugins import opened, reached
from trainer._private import SUBMITIT_WORKER
from trainer.rundir.status import CRASHED, read_status, write_status

LINE = f"{TINY} {GATED} launch.snapshot=false launch.gpus_per_node=0 launch.cpus_per_task=4 launch.runs_per_job=2"


# Shares of a machine --------------------------------------------------------------------------------------------


def test_equal_shares_of_cores() -> None:
    shares = core_shares([2, 3, 4, 8, 9], 2)
    assert [set(share.cores) for share in shares] == [{2, 3}, {4, 8}]
    assert {share.environment["OMP_NUM_THREADS"] for share in shares} == {"2"}
    assert [set(share.cores) for share in core_shares([5, 7], 3)] == [{5}, {7}, {5}]


@pytest.mark.parametrize(
    ("cores", "of_machine", "own"),
    [
        (range(4, 12), 64, [{4, 5}, {6, 7}, {8, 9}]),  # Slurm confines the job
        (range(8), 8, [{0, 1}, {2, 3}, {4, 5}]),  # it has the whole node
        (range(64), 64, [set(), set(), set()]),  # it is not confined: which cores are free is not known
    ],
)
def test_the_cores_of_a_job(
    cores: range, of_machine: int, own: list[set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack.os, "sched_getaffinity", lambda _: set(cores))
    monkeypatch.setattr(pack.os, "cpu_count", lambda: of_machine)
    shares = shares_of_job(SlurmOptions(dir="x", cpus_per_task=8, runs_per_job=4), 3)
    assert [set(share.cores) for share in shares] == own
    assert [share.environment["OMP_NUM_THREADS"] for share in shares] == ["2"] * 3


def test_runs_on_this_machine_share_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_executor.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    shares = local_executor.machine_shares(LocalOptions(dir="x", array_parallelism=2, runs_per_job=2))
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares] == ["4", "4", "7", "7"]
    assert [set(share.cores) for share in shares] == [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
    alone = local_executor.machine_shares(LocalOptions(dir="x", array_parallelism=2))
    assert [(share.environment, share.cores) for share in alone] == [
        ({"CUDA_VISIBLE_DEVICES": gpu}, frozenset()) for gpu in ("4", "7")
    ]


# What the commands make of runs in one job -----------------------------------------------------------------------


def made(path: Path, jobs: list[str]) -> Sweep:
    """A sweep whose runs are training in these jobs."""
    runs = [SweepRun(f"{i}_seed={i}", [f"seed={i}"], [job]) for i, job in enumerate(jobs)]
    sweep = Sweep(path, path, SlurmOptions(dir="x", snapshot=False, runs_per_job=2), runs)
    sweep.jobs.mkdir()
    for run in runs:
        sweep.directory(run).mkdir()
        write_job(sweep.directory(run), run.jobs[-1], 0)
        write_status(sweep.directory(run), "running", step=3)
    sweep.write()
    return sweep


def rows(path: Path) -> list[RunState]:
    return run_states(read_sweep(path))[0]


def test_each_run_has_its_own_state_and_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = made(tmp_path, ["7_0", "7_0", "7_1"])
    monkeypatch.setattr(slurm_executor, "queued", lambda jobs: dict.fromkeys(jobs, ("RUNNING", "None")))
    write_status(sweep.directory(sweep.runs[1]), "failed", error="bad")
    assert [(row.state, row.reason) for row in rows(tmp_path)] == [
        ("running", None),
        ("failed", "bad"),
        ("running", None),
    ]
    logs = ["7_0_1_log.out", "7_0_2_log.out", "7_1_1_log.out"]
    assert [row.log.name for row in rows(tmp_path) if row.log] == logs

    sweep.runs[0].jobs.append("8")  # it was submitted again: the log of its neighbour stays where it is
    sweep.write()
    assert [row.log.name for row in rows(tmp_path) if row.log] == ["8_1_log.out", *logs[1:]]


def test_a_cancelled_run_takes_its_job_along_and_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, ["7_0", "7_0", "7_1"])
    ended: list[str] = []

    def queued(jobs: list[str]) -> dict[str, tuple[str, str]]:
        return {job: ("RUNNING", "None") for job in jobs if job not in ended}

    monkeypatch.setattr(slurm_executor, "queued", queued)
    monkeypatch.setattr(slurm_executor, "ended", lambda jobs: {})
    monkeypatch.setattr(slurm_executor, "cancel", ended.extend)
    assert main(["cancel", str(tmp_path), "1"]) == 0
    assert set(ended) == {"7_0"}
    assert capsys.readouterr().out == (
        "cancelled 2 of 3 runs\namong them, in the same job: 0_seed=0; these go on by "
        f"python -m launch rerun {tmp_path} 0\n"
    )
    assert [row.state for row in rows(tmp_path)] == ["cancelled", "cancelled", "running"]
    assert main(["cancel", str(tmp_path), "9"]) == 2
    assert "unknown run 9" in capsys.readouterr().err
    assert main(["cancel", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "cancelled 1 of 3 runs\n"


# A job, executed as its script does ------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs that take every job as number 7, and note what is requeued; returns the note."""
    programs, note = tmp_path / "programs", tmp_path / "requeued"
    programs.mkdir()
    for name, script in {
        "sbatch": "echo Submitted batch job 7",
        "srun": "",
        "squeue": "",
        "sacct": "",
        "scontrol": f'echo "$@" >> {note}',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return note


class Job:
    """One start of a job of the array, as Slurm would make it."""

    def __init__(self, sweep: Path, index: int, restart: int) -> None:
        self.jobs = sweep / "jobs"
        variables = {"SLURM_JOB_ID": "100", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(index)}
        self.environment = {**os.environ, **variables, "SUBMITIT_EXECUTOR": "slurm"}
        self.environment |= {"SLURM_RESTART_COUNT": str(restart)} if restart else {}
        command = [sys.executable, "-u", "-m", SUBMITIT_WORKER, self.jobs]
        with (self.jobs / f"7_{index}_0_log.out").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def wait(self) -> int:
        """The exit code of the job, after the last command of its script."""
        code = self.process.wait(120)
        code = 128 - code if code < 0 else code
        command = [sys.executable, "-m", "launch.on_exit", self.jobs, str(code)]
        return subprocess.run(command, env=self.environment).returncode


def wait_until(condition: Callable[[], object]) -> None:
    until(lambda: bool(condition()), 250, "a run")


def process_of(run: Path) -> int:
    return read_status(run)["pid"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_is_stopped_and_goes_on_with_those_that_have_not_ended(slurm: Path, tmp_path: Path) -> None:
    path = tmp_path / "sweep"
    here, missing = tmp_path / "here.txt", tmp_path / "missing.txt"
    here.write_text("to be or not to be " * 200)
    grid = f"data.path={here},{missing} seed=0,1 launch.runs_per_job=3 launch.dir={path}"
    assert main([*LINE.split(), *grid.split()]) == 0
    assert [run.jobs for run in read_sweep(path).runs] == [["7_0"], ["7_0"], ["7_0"], ["7_1"]]
    first, second, third, fourth = (path / run.name for run in read_sweep(path).runs)

    last = Job(path, 1, restart=0)
    job = Job(path, 0, restart=0)
    assert last.wait() == 1
    assert "missing.txt" in read_status(fourth)["error"]
    wait_until(lambda: reached(first, 5).exists() and reached(second, 5).exists())
    wait_until(lambda: read_status(third).get("state") == "failed")  # at once, though the others go on
    variables = Path(f"/proc/{process_of(first)}/environ").read_bytes().split(b"\0")
    assert b"OMP_NUM_THREADS=1" in variables
    [share] = shares_of_job(SlurmOptions(dir="x", cpus_per_task=4, runs_per_job=3), 1)
    assert os.sched_getaffinity(process_of(first)) == (share.cores or os.sched_getaffinity(0))
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == 1
    assert slurm.read_text() == "requeue 7_0\n"
    for run in (first, second):
        assert read_status(run)["error"] == "stopped by SIGTERM at step 6; restart 1 of at most 10"
    assert "missing.txt" in read_status(third)["error"]

    job = Job(path, 0, restart=1)
    wait_until(lambda: reached(first, 15).exists() and reached(second, 15).exists())
    opened(first, 15).touch()
    os.kill(process_of(first), signal.SIGKILL)  # it is started again at once, and finishes
    wait_until(lambda: read_status(first)["state"] == "finished")
    job.process.kill()  # the other one notices, and saves
    wait_until(lambda: read_status(second)["state"] == "preempted")
    assert job.wait() == 1
    assert slurm.read_text() == "requeue 7_0\n" * 2
    before = {file: file.stat().st_mtime_ns for run in (first, third) for file in run.rglob("*")}

    opened(second, 15).touch()
    assert Job(path, 0, restart=2).wait() == 1
    assert [(row.state, row.restarts) for row in rows(path)] == [
        ("finished", 2),
        ("finished", 2),
        ("failed", 0),
        ("failed", 0),
    ]
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert slurm.read_text() == "requeue 7_0\n" * 2


@pytest.mark.slow
def test_a_run_that_was_submitted_again_is_no_longer_the_old_jobs(slurm: Path, tmp_path: Path) -> None:
    """One of a job has failed and was submitted again, then its first job is restarted for the others, or ends."""
    path = tmp_path / "sweep"
    line = f"{LINE} seed=0,1 loop.max_steps=3 launch.max_requeues=1 launch.dir={path}"
    assert main(line.split()) == 0  # a single job
    sweep = read_sweep(path)
    first, second = (sweep.directory(run) for run in sweep.runs)
    write_job(first, "7", 0)
    write_status(first, "failed", error="bad")
    sweep.runs[0].jobs.append("8")
    sweep.write()
    job = pack.Pack(path, [run.name for run in sweep.runs])
    assert job.record_exit("7", 143)
    assert read_status(first)["error"] == "bad"
    assert read_status(second)["error"] == "a task was killed by SIGTERM; restart 1 of at most 1"
    assert [run.name for run in job._open("7")[1]] == [second.name]


def test_restarts_are_bounded_whoever_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = made(tmp_path, ["7", "7"])
    job = pack.Pack(tmp_path, [run.name for run in sweep.runs])
    monkeypatch.setenv("SLURM_RESTART_COUNT", "10")
    assert not job.record_exit("7", 75)
    assert [read_status(tmp_path / name)["state"] for name in job.names] == ["failed", "failed"]


def test_a_run_that_cannot_be_started_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its directory is gone; what the other one executes prints a poem."""
    sweep = made(tmp_path, ["7", "7"])
    first, second = map(sweep.directory, sweep.runs)
    monkeypatch.setattr(Sweep, "command", lambda *_: ["this"])
    write_status(second, "finished")
    rmtree(first)
    assert Pool(sweep, [(run, 0) for run in sweep.runs], [Share()]).execute() == CRASHED
    assert f"failed {first.name}: cannot be started: No such file" in capsys.readouterr().out
    assert "Beautiful is better than ugly" in sweep.logs(sweep.runs[1])[0].read_text()


# On this machine -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_side_by_side_on_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "sweep"
    line = (
        f"launch=local {TINY.replace('launch.cpus_per_task=1', '')} {GATED} launch.snapshot=false seed=0,1,2"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", *line.split(), "launch.runs_per_job=2", f"launch.dir={path}"]
    )
    runs = [path / f"{seed}_seed={seed}" for seed in range(3)]
    try:
        wait_until(lambda: reached(runs[0], 5).exists() and reached(runs[1], 5).exists())
        assert not reached(runs[2], 5).exists()
        cores = [os.sched_getaffinity(process_of(run)) for run in runs[:2]]
        available = sorted(os.sched_getaffinity(0))
        assert cores == [set(share.cores) for share in core_shares(available, 2)]
        for run in runs:
            opened(run, 5).touch()
            opened(run, 15).touch()
        assert process.wait(250) == 0
    finally:
        process.kill()
    assert [row.state for row in rows(path)] == ["finished"] * 3
