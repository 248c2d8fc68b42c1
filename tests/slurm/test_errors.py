"""What Slurm refuses, and what else hinders a launch: one line each, and nothing half-done."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.__main__ import main
from tests.slurm.cluster import TINY, Launched, slurm
from tests.slurm.conftest import Sweeps

ONE = f"{TINY} launch.gpus_per_node=0 loop.max_steps=20"


def refused(capsys: pytest.CaptureFixture[str], directory: Path, overrides: str) -> str:
    """The only line that a launch prints, which leaves neither a job nor a directory."""
    capsys.readouterr()
    assert main([*ONE.split(), *overrides.split(), f"launch.dir={directory}"]) == 2
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
    cluster: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = refused(capsys, tmp_path / "sweep", overrides)
    assert said.startswith("error: Slurm refused the jobs: ")
    assert words in said
    assert option in said
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
    sweeps: Sweeps, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweeps("short", ONE)
    assert sweep.wait()[0].state == "finished"
    request.getfixturevalue("down")
    capsys.readouterr()
    assert main(["status", str(sweep.directory)]) == 0
    out = capsys.readouterr().out
    assert "1 finished" in out
    assert "Slurm does not answer" in out


def test_without_accounts(sweeps: Sweeps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweeps("unaccounted", f"{ONE} data.path={tmp_path / 'missing'}")
    (tmp_path / "sacct").write_text("#!/bin/sh\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n")
    (tmp_path / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    row = sweep.wait()[0]
    assert (row.state, row.slurm) == ("failed", None)
    assert "missing" in row.reason


@pytest.fixture
def disk(small_disk: Path, cluster: None) -> Iterator[Path]:
    if not small_disk.is_mount():
        pytest.skip("may not mount a tmpfs here")
    yield small_disk
    for path in small_disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_no_room_for_the_sweep(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (disk / "full").write_bytes(b"0" * 900_000)
    assert "No space left on device" in refused(capsys, disk / "sweep", "")


def test_no_room_for_a_checkpoint(disk: Path) -> None:
    directory = disk / "sweep"
    line = (
        f"{ONE} launch.snapshot=false checkpoint.every_steps=2 checkpoint.keep_last=9 launch.dir={directory}"
    )
    assert main(line.split()) == 0
    sweep = Launched(directory)
    row = sweep.wait()[0]
    assert row.state == "failed", sweep.log()
    assert "No space left on device" in row.reason
    assert list(sweep.run.glob("checkpoints/step_*"))
    assert list(sweep.run.glob("checkpoints/.step_*")) == []
