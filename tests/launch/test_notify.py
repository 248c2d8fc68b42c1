"""One message when a sweep has ended, received by a server on this machine through apprise's json://."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.notify import notify_once
from launch.options import SlurmOptions
from launch.records import write_job
from launch.sweep_dir import Sweep, SweepRun
from tests.launch.receiver import SECRET, Server
from trainer.rundir.status import write_status

pytest.importorskip("apprise")

TINY = "launch=local device=cpu model=cnn model.widths=[4] monitor.sinks=[jsonl] loop.max_steps=1 launch.snapshot=false"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.mark.slow
def test_a_sweep_with_a_failed_run_sends_one_message_and_keeps_the_secret(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOTIFY_PASSWORD", SECRET)
    sweep = tmp_path / "lots"
    url = server.url().replace(SECRET, "${oc.env:NOTIFY_PASSWORD}")
    grid = f"checkpoint.weights=null,{tmp_path / 'none.safetensors'}"
    assert main([*TINY.split(), grid, f'launch.notify=["{url}"]', f"launch.dir={sweep}"]) == 1
    [post] = server.posts
    assert post["password"] == SECRET
    assert (post["title"], post["type"]) == ("lots: 1 finished, 1 failed", "failure")
    first, second = post["message"].splitlines()
    assert first == str(sweep)
    assert second.startswith("1_checkpoint.weights=")
    assert "none.safetensors" in second.partition(": failed, ")[2]

    assert main(["status", str(sweep), "--json"]) == 0  # sweep.json has the reference, not what it stands for
    assert SECRET not in "".join(capfd.readouterr())
    files = [path for path in sweep.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert "oc.env:NOTIFY_PASSWORD" in (sweep / "sweep.json").read_text()


@pytest.mark.slow
def test_a_message_that_is_not_accepted_is_a_line_of_warning(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.status = 500
    urls = f'["{server.url()}","json://ada:{SECRET}@127.0.0.1:1"]'  # nobody listens there
    assert main([*TINY.split(), f"launch.notify={urls}", f"launch.dir={tmp_path / 'sweep'}"]) == 0
    assert [post["title"] for post in server.posts] == ["sweep: 1 finished"]
    out, err = capfd.readouterr()
    assert err.splitlines() == [
        f"warning: launch.notify[{number}] got no message: it was not accepted, or nobody answered"
        for number in range(2)
    ]
    assert SECRET not in out


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        (f"nothing://{SECRET}", "launch.notify[1] is wrong: it must be a URL that apprise knows"),
        (f"json://${{oc.env:UNSET_URL}}/{SECRET}", "launch.notify[1] is wrong: it refers to"),
        (f"json://${{nothing.there}}/{SECRET}", "launch.notify[1] is wrong: it refers to"),
    ],
)
def test_a_wrong_url_is_refused_without_its_secret(
    url: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["launch.snapshot=false", f'launch.notify=["json://h","{url}"]', f"launch.dir={tmp_path / 'x'}"])
        == 2
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert hint in err
    assert SECRET not in err
    assert list(tmp_path.iterdir()) == []


# From Slurm's jobs -----------------------------------------------------------------------------------------------


def made(path: Path, server: Server, **options: Any) -> Sweep:
    """A sweep whose runs train in a job each."""
    runs = [SweepRun(f"{i}_seed={i}", [], [f"7_{i}"]) for i in range(3)]
    sweep = Sweep(path, path, SlurmOptions(dir="x", notify=[server.url()], **options), runs)
    sweep.jobs.mkdir()
    for run in runs:
        sweep.directory(run).mkdir()
        write_job(sweep.directory(run), run.jobs[-1], 0)
        write_status(sweep.directory(run), "running")
    return sweep


def titles(server: Server, sweep: Sweep) -> list[str]:
    """Of all messages, after one more job has come to its end."""
    sweep.write()
    notify_once(sweep.path)
    return [post["title"].partition(": ")[2] for post in server.posts]


def test_the_last_job_sends_it_and_no_other(server: Server, tmp_path: Path) -> None:
    sweep = made(tmp_path, server)
    first, second, third = map(sweep.directory, sweep.runs)
    write_status(first, "finished")
    assert titles(server, sweep) == []
    write_status(second, "preempted", error="stopped; restart 1 of at most 10")
    write_status(third, "failed", error="reached launch.max_requeues=10")
    assert titles(server, sweep) == [], "one is preempted, and starts again"
    sweep.runs[1].cancelled = "7_1"
    assert titles(server, sweep) == ["1 finished, 1 failed, 1 cancelled"]
    assert titles(server, sweep) == ["1 finished, 1 failed, 1 cancelled"]
    assert "2_seed=2: failed, reached launch.max_requeues=10" in server.posts[0]["message"]

    for run in sweep.runs[1:]:  # both are submitted again
        run.jobs.append("8")
    assert len(titles(server, sweep)) == 1
    for run in sweep.runs[1:]:
        write_job(sweep.directory(run), "8", 0)
        write_status(sweep.directory(run), "finished")
    assert titles(server, sweep)[1:] == ["3 finished"]
    assert server.posts[1]["type"] == "success"


def test_preempted_without_requeues_is_an_end(server: Server, tmp_path: Path) -> None:
    sweep = made(tmp_path, server, max_requeues=0)
    for run in sweep.runs:
        write_status(sweep.directory(run), "preempted", error="stopped")
    assert titles(server, sweep) == ["3 preempted"]


def test_a_damaged_sweep_is_a_warning(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, server)
    (tmp_path / "sweep.json").write_text("{")
    notify_once(tmp_path)
    assert capsys.readouterr().err.startswith("warning: launch.notify was not looked at: ")
