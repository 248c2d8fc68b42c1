"""Run directories are data that anybody may have written: whatever is in one, the others are reported."""

import json
import os
import random
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.report.fake import write_run
from trainer.report.__main__ import main
from trainer.report.read_runs import read_run, read_runs
from trainer.rundir import foreign
from trainer.rundir.status import start_time

DEEP = 100_000
STATUS = {"format": 1, "state": "running", "step": 30, "host": socket.gethostname(), "pid": 1, "time": 1.0}
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 30)
)


def status(**changed: Any) -> str:
    record = {**STATUS, **changed}
    return json.dumps({key: value for key, value in record.items() if value is not ...})


ODD = [
    ("status.json", "null"),
    ("status.json", "[]"),
    ("status.json", "3"),
    ("status.json", '{"state": "finished"}'),
    ("status.json", "[" * DEEP),
    ("status.json", status(pid=...)),
    ("status.json", status(pid="7")),
    ("status.json", status(pid=10**30)),
    ("status.json", status(pid=-1)),
    ("status.json", status(host=None)),
    ("status.json", status(state=[])),
    ("status.json", status(state="queued")),
    ("status.json", status(step="3")),
    ("status.json", status(step=None)),
    ("status.json", status(step=3.5)),
    ("status.json", status(time="now")),
    ("status.json", status(time=10**400)),
    ("status.json", status(error=["x"])),
    ("status.json", status(error="\ud800\x1b[31m")),
    ("status.json", status(metrics=[1])),
    ("status.json", status(metrics={"test/accuracy": "high"})),
    ("status.json", status(primary=3)),
    ("status.json", status(declared={"accuracy": {"format": []}})),
    ("clock.jsonl", '{"kind": "evaluation", "step": 10}\n'),
    ("clock.jsonl", '{"kind": "evaluation", "step": 10, "seconds": "1"}\n'),
    ("clock.jsonl", '{"kind": [], "step": 10, "seconds": 1}\n'),
    ("metrics.jsonl", '{"kind": "evaluation", "step": "10", "test/accuracy": 1}\n'),
    ("metrics.jsonl", '{"kind": "evaluation", "step": null, "test/accuracy": 1}\n'),
    ("metrics.jsonl", '{"kind": "evaluation", "step": 10, "test/accuracy": "0.9"}\n'),
    ("metrics.jsonl", '{"kind": "evaluation", "step": 10, "test/accuracy": [0.9]}\n'),
    ("metrics.jsonl", f'{{"kind": "evaluation", "step": {10**30}, "test/accuracy": 1}}\n'),
    ("metrics.jsonl", f'{{"kind": "evaluation", "step": 10, "test/accuracy": {10**400}}}\n'),
    ("metrics.jsonl", "[" * DEEP),
    ("metrics.jsonl", "[]\nnull\n3\n\x00\n"),
    ("config.yaml", "model: {name: cnn}\nseed: 2020-01-01\noptimizer: {name: !!set {x, y}, lr: 1}\n"),
    ("config.yaml", "model: {name: !!binary aGk=}\nseed: .nan\noptimizer: {name: adamw, lr: .inf}\n"),
    ("config.yaml", "model: {name: cnn}\n1: {null: [2020-01-01]}\noptimizer: {lr: 1" + "0" * 400 + "}\n"),
    ("config.yaml", "model: &m {name: *m}\nseed: 0\n"),
    ("config.yaml", "!!python/object/apply:os.system [false]"),
    ("config.yaml", BOMB),
    ("config.yaml", MERGES),
    ("config.yaml", "[" * DEEP),
    ("config.yaml", "{" * 900 + "}" * 900),
    ("config.yaml", 'optimizer: {name: "$\\\\frac$\\e[31m\\ud800", lr: 0.1}\nmodel: {name: cnn}\nseed: 0\n'),
    ("environment.json", "[]"),
    ("environment.json", '{"host": {"a": ' * 2000),
    ("environment.json", '{"host": ["\\u001b"], "devices": {"x": null}}'),
]


@pytest.mark.parametrize("number", range(len(ODD)))
def test_an_odd_run_does_not_end_the_report(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, content = ODD[number]
    for seed in range(2):
        write_run(tmp_path / f"fine_{seed}", [0.8, 0.9], seed=seed)
    write_run(tmp_path / "odd", [0.7, 0.8], seed=2)
    (tmp_path / "odd" / name).write_text(content)
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "\x1b[31m" not in said.out + said.err
    assert "\ud800" not in said.out + said.err
    assert main([str(tmp_path), "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert sum(group["counted"] for group in groups) >= 2


@pytest.mark.parametrize("content", [ODD[-4][1]])
def test_odd_labels_are_drawn(content: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for seed in range(2):
        write_run(tmp_path / f"run_{seed}", [0.8, 0.9], seed=seed, metric="test/../\x00$x")
    (tmp_path / "run_1" / "config.yaml").write_text(content)
    assert main([str(tmp_path), "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "test_..___x.png").exists()
    assert "\x1b" not in (tmp_path / "report" / "report.md").read_text()


def test_random_damage(tmp_path: Path) -> None:
    """One byte of one file, over and over: every run is read, or said to be unreadable."""
    run = write_run(tmp_path / "run", [0.8, 0.9])
    draw = random.Random(0)
    files = {path: path.read_bytes() for path in sorted(run.iterdir())}
    for _ in range(300):
        path, content = draw.choice(list(files.items()))
        damaged = bytearray(content)
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        read_run(run)
        path.write_bytes(content)
    assert read_run(run).evaluations["test/accuracy"][-1].value == 0.9


def test_files_that_are_no_files(tmp_path: Path) -> None:
    """A pipe that nobody writes to would be read for ever."""
    write_run(tmp_path / "fine", [0.9])
    for name in ("config.yaml", "status.json", "metrics.jsonl", "clock.jsonl", "environment.json"):
        run = write_run(tmp_path / name, [0.8])
        (run / name).unlink()
        os.mkfifo(run / name)
    (write_run(tmp_path / "zero", [0.7]) / "config.yaml").unlink()
    (tmp_path / "zero" / "config.yaml").symlink_to("/dev/zero")
    assert len(read_runs([tmp_path])) == 7


def test_links_are_followed_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "elsewhere" / "run", [0.9])
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    (outputs / "latest").symlink_to(run)
    (outputs / "again").symlink_to(run.parent)
    (outputs / "loop").symlink_to(outputs)
    (outputs / "broken").symlink_to("nowhere")
    assert [found.path for found in read_runs([outputs])] == [run]


def test_long_lines_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "MAX_BYTES", 2000)
    run = write_run(tmp_path / "run", [0.8])
    with (run / "metrics.jsonl").open("a") as file:
        file.write("x" * 10_000 + "\n")
        file.write('{"kind": "evaluation", "step": 20, "epoch": 2.0, "test/accuracy": 0.9}\n')
    found = read_run(run)
    assert found.unreadable == 1
    assert [point.value for point in found.evaluations["test/accuracy"]] == [0.8, 0.9]


@pytest.mark.skipif(start_time(os.getpid()) is None, reason="needs /proc")
def test_another_process_with_the_number_of_one_that_is_gone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [0.8])
    with subprocess.Popen(["sleep", "100"]) as other:
        started = start_time(other.pid)
        assert started is not None
        for written, state in ((started, "running"), (started - 1, "vanished")):
            (run / "status.json").write_text(status(pid=other.pid, started=written))
            assert read_run(run).state == state
        other.kill()
