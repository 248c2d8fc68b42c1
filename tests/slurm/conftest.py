"""One test cluster for all tests of this folder."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Launched, missing, start, stop, submit


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
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
