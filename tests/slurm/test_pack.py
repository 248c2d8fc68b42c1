"""Runs that share jobs on a real Slurm: each fails, is killed and ends by itself; they are preempted together."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.cli import main
from tests.launch.receiver import SECRET, Server
from tests.slurm.cluster import GATED, TINY, slurm, submit, until
from tests.slurm.conftest import UNGATED
from tests.slurm.plugins import opened, reached
from tests.training.kill_and_resume import compare

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

LINE = f"{TINY} {GATED} launch.gpus_per_node=0 launch.cpus_per_task=3 launch.runs_per_job=3"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def process_of(run: Path) -> int:
    """The process that trains in a run directory, as this machine numbers it: status.json has the node's number."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"launch.worker" in words and any(str(run).encode() in word for word in words):
                return int(entry.name)
    raise AssertionError(f"nobody trains in {run}")


def preempt(job: str) -> None:
    """Has a job of higher priority take the node of a job."""
    node = slurm("squeue", "-h", "-j", job, "-o", "%N").strip()
    slurm("sbatch", "-p", "urgent", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap=sleep 1")


def test_runs_that_share_jobs(cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, missing = tmp_path / "here.txt", tmp_path / "missing.txt"
    here.write_text("to be or not to be " * 200)
    sweep = submit(tmp_path / "packed", f"{LINE} data.path={here},{missing} seed=0,1")
    calm = submit(
        tmp_path / "calm", f"{TINY} {GATED} {UNGATED} launch.gpus_per_node=0 data.path={here} seed=0,1"
    )
    rows = sweep.rows
    first, second, third, _ = (sweep.directory / row.name for row in rows)
    assert [row.job for row in rows] == [rows[0].job] * 3 + [rows[3].job]
    assert "#SBATCH --array=0-1%2" in next((sweep.directory / "jobs").glob("*.sh")).read_text()

    # one fails at once, and is shown so while the others train, each with its share of the cores
    until(lambda: reached(first, 5).exists() and reached(second, 5).exists(), 300, sweep.directory)
    until(
        lambda: [row.state for row in sweep.rows] == ["running", "running", "failed", "failed"],
        200,
        sweep.rows,
    )
    assert str(missing) in sweep.log(2)
    assert str(missing) in sweep.rows[3].reason
    assert b"OMP_NUM_THREADS=1" in Path(f"/proc/{process_of(first)}/environ").read_bytes().split(b"\0")

    # preempted together, they go on together; the failed one is left alone
    until(lambda: [row.state for row in calm.wait()] == ["finished"] * 2, 400, calm.directory)
    failed = {path: path.stat().st_mtime_ns for path in third.iterdir()}
    preempt(sweep.job)
    until(lambda: reached(first, 15).exists() and reached(second, 15).exists(), 300, sweep.directory)
    assert [row.restarts for row in sweep.rows] == [1, 1, 0, 0]

    # one is killed, goes on at once and finishes; the job is then stopped for the other one, and trains it alone
    opened(first, 15).touch()
    os.kill(process_of(first), signal.SIGKILL)
    until(lambda: sweep.rows[0].state == "finished", 200, sweep.directory)
    finished = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    slurm("scancel", "--signal=USR2", sweep.job)
    rows = sweep.wait()
    assert [(row.state, row.restarts) for row in rows] == [("finished", 2)] * 2 + [("failed", 0)] * 2
    assert {path: path.stat().st_mtime_ns for path in [*finished, *failed]} == finished | failed
    for number in range(2):
        assert compare(sweep.directory / rows[number].name, calm.directory / calm.rows[number].name) == []

    # those that have failed are submitted again, in one job of their own
    until(lambda: {row.slurm for row in sweep.rows} == {"FAILED"}, 200, sweep.directory)
    missing.write_text("that is the question " * 200)
    for run in sweep.rows[2:]:
        for step in (5, 15):
            opened(sweep.directory / run.name, step).touch()
    capsys.readouterr()
    assert main(["rerun", str(sweep.directory), "--failed"]) == 0
    assert capsys.readouterr().out == f"rerunning {rows[2].name}, {rows[3].name}\n"
    again = sweep.wait()
    assert [row.state for row in again] == ["finished"] * 4
    assert again[2].job == again[3].job != rows[2].job


def test_the_last_job_of_a_sweep_sends_one_message(
    cluster: None, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("apprise")
    monkeypatch.setenv("NOTIFY_URL", server.url())  # the jobs have it, and no file has
    here = tmp_path / "here.txt"
    here.write_text("to be or not to be " * 200)
    line = f"{TINY} launch.gpus_per_node=0 loop.max_steps=2 data.path={here},{tmp_path / 'missing.txt'}"
    sweep = submit(tmp_path / "sweep", f'{line} launch.notify=["${{oc.env:NOTIFY_URL}}"]')
    until(lambda: {row.slurm for row in sweep.rows} == {"COMPLETED", "FAILED"}, 400, sweep.directory)
    [post] = server.posts
    assert (post["title"], post["password"]) == ("sweep: 1 finished, 1 failed", SECRET)
    assert "missing.txt" in post["message"]
    files = [path for path in sweep.directory.rglob("*") if path.is_file()]
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
