"""The commands that look after a sweep answer at once: they import no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch.options import LocalOptions
from launch.records import write_job
from launch.sweep_dir import Sweep, SweepRun
from trainer.rundir.status import write_status

ROOT = Path(__file__).parents[2]
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from launch.cli import main; sys.exit(main())"


def made(path: Path, output: str) -> None:
    """A sweep of one run, which has finished and printed this."""
    run = SweepRun("0_run", [], ["here.1.0"])
    sweep = Sweep(path, path, LocalOptions(dir="x"), [run])
    for directory in (sweep.directory(run), sweep.jobs):
        directory.mkdir()
    write_job(sweep.directory(run), "here.1.0", 0)
    write_status(sweep.directory(run), "finished", step=3)
    (sweep.jobs / "here.1.0_0_log.out").write_text(output)
    sweep.write()


@pytest.mark.parametrize(
    ("line", "code", "output"),
    [
        ("--help", 0, "python -m launch status DIR"),
        ("compare optimizer=sgd --help", 0, "python -m launch status DIR"),
        ("optimizer=sgd -h", 0, "python -m launch status DIR"),
        ("status DIR", 0, "1 finished"),
        ("status DIR --json", 0, '"state": "finished"'),
        ("logs DIR 0", 0, "the output"),
        ("wait DIR", 0, ""),
        ("cancel DIR", 0, "cancelled 0 of 1 runs"),
        ("rerun DIR", 0, "nothing to rerun"),
        ("stats DIR", 2, "did you mean status"),
        ("status nowhere", 2, "has no sweep.json in it"),
    ],
)
def test_no_torch(line: str, code: int, output: str, tmp_path: Path) -> None:
    made(tmp_path, "the output\n")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *line.replace("DIR", str(tmp_path)).split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert output in done.stdout + done.stderr


def test_a_reader_that_leaves_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # else Python does not see it
    made(tmp_path, "a line of the log\n" * 100_000)
    command = f"set -o pipefail; {sys.executable} -m launch logs {tmp_path} 0 | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a line of the log\n", "")
