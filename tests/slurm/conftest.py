"""One test cluster for all tests of this folder."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Launched, missing, start, stop, submit


@pytest.fixture(scope="session")
def small_disk() -> Iterator[Path]:
    """A megabyte, mounted before the cluster starts so that its nodes see it, too."""
    disk = Path(tempfile.mkdtemp(prefix="disk-"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    yield disk
    if mounted.returncode == 0:
        subprocess.run(["umount", "-l", disk], check=True)
    disk.rmdir()


@pytest.fixture(scope="session")
def cluster(small_disk: Path) -> Iterator[None]:
    if reason := missing():
        if os.environ.get("SLURM_TESTS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="slurm-"))
    before = dict(os.environ)
    try:
        start(directory, port=17100)
        yield
    finally:
        stop()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(directory, ignore_errors=True)


class Sweeps:
    """Submits sweeps into a directory of this session."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str, overrides: str) -> Launched:
        return submit(self.root / name, overrides)


@pytest.fixture(scope="session")
def sweeps(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    return Sweeps(tmp_path_factory.mktemp("sweeps"))
