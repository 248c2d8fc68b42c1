"""A finished run, to be copied."""

from pathlib import Path

import pytest

from tests.abuse.runs import copy_of, go


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be read only."""
    path = tmp_path_factory.mktemp("abuse") / "finished"
    assert go(path) == 0
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return copy_of(finished, tmp_path / "run")
