"""What the tests of trackers share."""

import pytest
import yaml

from tests.monitor.fake import CONFIG
from trainer.rundir.status import write_status


@pytest.fixture
def run(tmp_path):
    """A run directory without numbers."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump({"name": "digits", **CONFIG}))
    write_status(path, "finished", step=60)
    return path
