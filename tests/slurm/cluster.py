"""The test cluster, and jobs on it."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launch.cli import main
from launch.run_states import RunState, run_states
from launch.sweep_dir import read_sweep
from tests.slurm.plugins import reached
from trainer._private import SUBMITIT_WORKER
from trainer.rundir.status import read_status

SCRIPT = Path(__file__).parent / "slurm-cluster"
COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "sacct", "slurmdbd", "mariadbd")

TINY = (
    f"data=text data.path={Path(__file__).parents[2] / 'LICENSE'} data.context_length=32 data.batch_size=8 model=gpt "
    "model.layers=2 model.width=32 model.heads=2 model.dropout=0.1 loop.log_every=1 device=cpu "
    "monitor.sinks=[jsonl,runlog] checkpoint.every_minutes=null checkpoint.keep_best=false launch.cpus_per_task=1 "
)
"""A run of milliseconds a step."""

DISTURBED = (
    "plugins=[tests.slurm.plugins] monitor.sinks=[jsonl,runlog,slow] "
    "loop.max_steps=60 checkpoint.every_steps=7 "
)
"""One that lasts for 6 seconds."""

GATED = (
    "plugins=[tests.slurm.plugins] monitor.sinks=[jsonl,runlog,gate] "
    "loop.max_steps=20 checkpoint.every_steps=4 "
)
"""One that waits at each of `GATES` to be disturbed."""


def missing() -> str | None:
    """Why there can be no cluster here; None if there can."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    absent = [name for name in COMMANDS if shutil.which(name, path=path) is None]
    if absent:
        return f"needs the packages that tests/slurm/slurm-cluster names: {', '.join(absent)} not found"
    return None if os.getuid() == 0 else "the test cluster runs as root"


def start(directory: Path, port: int) -> dict[str, str]:
    """Starts the cluster; returns the environment in which commands find it."""
    os.environ.update(SLURM_LAB_DIR=str(directory), SLURM_LAB_PORT=str(port))
    output = subprocess.run([SCRIPT, "start"], check=True, capture_output=True, text=True, timeout=300).stdout
    variables = dict(re.findall(r"export (\w+)=(.*)", output))
    os.environ.update(variables)
    return variables


def stop() -> None:
    subprocess.run([SCRIPT, "stop"], check=True, timeout=120)


def kill_node(name: str) -> None:
    """As a power failure: slurmd and all processes of the node die at once."""
    pid = int((Path(os.environ["SLURM_LAB_DIR"]) / "run" / name).read_text().split()[0])
    os.kill(pid, signal.SIGKILL)


@dataclass
class Launched:
    """A sweep that was submitted."""

    directory: Path

    @property
    def rows(self) -> list[RunState]:
        return run_states(read_sweep(self.directory))[0]

    @property
    def run(self) -> Path:
        """The directory of the first run."""
        return self.directory / self.rows[0].name

    @property
    def job(self) -> str:
        return self.rows[0].job or ""

    def log(self, number: int = 0) -> str:
        log = self.rows[number].log
        return log.read_text() if log else ""

    def wait(self, seconds: float = 400) -> list[RunState]:
        until(lambda: not any(row.is_active for row in self.rows), seconds, self.directory)
        return self.rows

    def trains(self, step: int, seconds: float = 200) -> int:
        """Waits until the first run has come to a step, in its newest start; returns the step."""

        def there() -> bool:
            row = self.rows[0]
            assert row.is_active, row
            return row.state == "running" and (row.step or 0) >= step

        until(there, seconds, self.directory)
        return read_status(self.run)["step"]

    def waits_at(self, step: int, seconds: float = 200) -> None:
        """Waits until the first run is held by the gate at a step."""

        def there() -> bool:
            row = self.rows[0]
            assert row.is_active, row
            return reached(self.run, step).exists()

        until(there, seconds, self.directory)

    def pids(self) -> list[int]:
        """Of the processes that train here, on all nodes."""
        return [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and self._is_task(entry / "cmdline")
        ]

    def _is_task(self, cmdline: Path) -> bool:
        try:
            words = cmdline.read_bytes().split(b"\0")
        except OSError:
            return False
        return (
            SUBMITIT_WORKER.encode() in words
            and str(self.directory / "jobs").encode() in words
            and b"srun" not in words[0]
        )


def submit(directory: Path, overrides: str) -> Launched:
    assert main([*overrides.split(), f"launch.dir={directory}"]) == 0
    return Launched(directory)


def until(condition: Callable[[], bool], seconds: float, what: object) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds} seconds"
        time.sleep(0.3)


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
