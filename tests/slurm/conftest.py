"""One test cluster for all tests of a worker, to which all sweeps of test_jobs.py are submitted at once.

The tests then wait for theirs, while those of the other tests go through the queue.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.slurm.cluster import GATED, TINY, Launched, missing, slurm, start, stop, submit

ROOT = Path(__file__).parents[2]

ONE = f"{TINY} launch.gpus_per_node=0 loop.max_steps=6"
LONGER = f"{TINY} launch.gpus_per_node=0 loop.max_steps=20"
FOUR = f"{TINY} {GATED} launch.nodes=2 launch.gpus_per_node=2 parallel=fsdp"

PREEMPTED = "plugins=[tests.slurm.plugins] monitor.sinks=[jsonl,runlog,preempted] loop.max_steps=50"
SEARCH = "tune.search=random tune.trials=3 tune.lr=log(1e-3,0.1) tune.parallel=2"
UNGATED = "monitor.sinks=[jsonl,runlog]"


@contextmanager
def tiny_disk() -> Iterator[Path]:
    """A megabyte of memory as a file system; a plain directory where it may not be mounted."""
    disk = Path(tempfile.mkdtemp(prefix="disk-"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    try:
        yield disk
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", disk], check=True)
        shutil.rmtree(disk)


@pytest.fixture(scope="session")
def disks() -> Iterator[tuple[Path, Path]]:
    """Two, mounted before the cluster starts so that its nodes see them, too."""
    with ExitStack() as stack:
        yield stack.enter_context(tiny_disk()), stack.enter_context(tiny_disk())


@pytest.fixture(scope="session")
def cluster(disks: tuple[Path, Path]) -> Iterator[None]:
    if reason := missing():
        if os.environ.get("SLURM_TESTS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="slurm-"))
    before = dict(os.environ)
    os.environ["SLURM_LAB_CPUS"] = "3"  # a node's: more jobs at a time would only slow each other down
    try:
        start(directory, port=17100 + 20 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))
        yield
    finally:
        stop()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def sweeps(
    cluster: None, disks: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Launched]:
    """All sweeps by name, submitted: those first that need the most time, with their restarts."""
    root = tmp_path_factory.mktemp("sweeps")
    (root / "there.txt").write_text("to be or not to be " * 200)
    lines = {
        "disturbed": FOUR,
        "preempted": f"{ONE} {PREEMPTED} launch.max_requeues=2",
        "failing": f"{ONE} data.path={root / 'there.txt'},{root / 'missing.txt'}",
        "cancelled": f"{TINY} {GATED} launch.gpus_per_node=0",
        "grid": f"{ONE} optimizer=adafisher,adamw,sgd seed=0,1 launch.array_parallelism=2",
        "short": LONGER,
        "unaccounted": f"{LONGER} data.path={root / 'nowhere.txt'}",
        "comparison": f"compare {ONE} optimizer=adamw,sgd seed=0,1 budget_from=sgd",
        "calm": f"{FOUR} {UNGATED}",
    }
    if find_spec("optuna"):
        lines["search"] = f"compare {TINY} {GATED} launch.gpus_per_node=0 optimizer=sgd seed=0,1 {SEARCH}"
    with held(root) as edited:
        submitted = {name: submit(root / name, line) for name, line in lines.items()}
        if disks[0].is_mount():
            line = f"{LONGER} launch.snapshot=false checkpoint.every_steps=2 checkpoint.keep_last=9"
            submitted["full disk"] = submit(disks[0] / "full_disk", line)
    return {**submitted, "edited": edited}


@contextmanager
def held(root: Path) -> Iterator[Launched]:
    """A run whose code and configs are edited while its job is held; it is submitted from a copy of the code."""
    code, directory = root / "code", root / "edited"
    subprocess.run(["git", "clone", "-q", ROOT, code], check=True)
    for name in ("trainer", "launch", "conf"):  # as they are, committed or not
        subprocess.run(["cp", "-rT", ROOT / name, code / name], check=True)
    line = f"{ONE} optimizer.lr=0.25 launch.sbatch={{hold:true}} launch.dir={directory}"
    with subprocess.Popen([sys.executable, "-m", "launch", *line.split()], cwd=code) as process:
        sweep = Launched(directory)
        yield sweep
        assert process.wait(120) == 0
    assert sweep.rows[0].state == "queued"
    for path in [*(code / "trainer").rglob("*.py"), *(code / "launch").rglob("*.py")]:
        path.write_text("raise SystemExit('edited')\n")
    for path in (code / "conf").rglob("*.yaml"):
        path.write_text("edited: true\n")
    slurm("scontrol", "release", sweep.job)
