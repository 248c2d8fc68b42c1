"""The plugin that docs/extending.md prints, as a package: swept here, launched on a real Slurm, reported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import Launched, slurm
from tests.training.kill_and_resume import compare
from trainer.rundir.provenance import CODE

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

PAGE = Path(__file__).parents[2] / "docs/extending.md"
LINE = [
    *["plugins=[metric_learning.ranking]", "data=triplets", "model=embedding", "schedule=inverse_sqrt"],
    *["callbacks=[calm]", "data.batch_size=40", "loop.max_steps=12", "loop.eval_every=4", "device=cpu"],
    *["monitor.sinks=[jsonl,csv]", "objective=ranking", "objective.margin=0.5,1"],
]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder in which the package is found."""
    folder = tmp_path / "site" / "metric_learning"
    folder.mkdir(parents=True)
    [source] = re.findall(r"^```python\n(# ranking.py\n.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (folder / "__init__.py").touch()
    (folder / "ranking.py").write_text(source)
    return folder


def python(folder: Path, *words: str) -> str:
    """What a command prints that is executed in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(CODE), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_package_is_swept_launched_from_its_copy_and_reported(
    cluster: None, package: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    python(package.parent, "trainer", "--multirun", *LINE, f"hydra.sweep.dir={here}")
    options = ["launch.gpus_per_node=0", "launch.cpus_per_task=1", "launch.sbatch={hold:true}"]
    python(package.parent, "launch", *LINE, *options, f"launch.dir={there}")
    sweep = Launched(there)
    assert [row.state for row in sweep.rows] == ["queued"] * 2
    for file in package.glob("*.py"):  # jobs that import it fail from now on
        file.write_text("raise SystemExit('edited')\n")
    slurm("scontrol", "release", sweep.job.partition("_")[0])

    rows = sweep.wait()
    assert [row.state for row in rows] == ["finished"] * 2, sweep.log()
    local = sorted(path.parent for path in here.glob("*/config.yaml"))
    for row, other in zip(rows, local, strict=True):
        assert compare(there / row.name, other) == []
        assert (there / row.name / "evaluations.csv").read_bytes() == (other / "evaluations.csv").read_bytes()
    assert [row.metric for row in rows] == ["test/ranked"] * 2

    report = python(tmp_path, "trainer.report", str(there))
    for row in rows:
        assert f"{row.value:.2%}".rstrip("%") in report, report
