"""Sweeps of short runs on the test cluster, disturbed at random for a given time; no run may be lost or train twice.

    python tests/slurm/soak.py --minutes 120 [--seed 0]

Jobs are preempted, signalled, requeued, killed, cancelled and submitted again; nodes die; a disk is full for seconds.
All the while what `python -m launch status` says is compared with the processes that are there. At the end everything
is submitted again until it has finished, and every run must have the bits of an undisturbed one. One cluster at a time
runs on a machine: others wait for a lock in /tmp.
"""

import argparse
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from launch.cli import main as launch
from launch.run_states import RunState
from tests.slurm import cluster
from tests.slurm.cluster import DISTURBED, TINY, Launched, slurm, submit
from tests.training.kill_and_resume import compare
from trainer._private import SUBMITIT_WORKER

LOCK = Path("/tmp/slurm-cluster.lock")
PORT = 16900
SEEDS = 2
SHAPES = ("launch.gpus_per_node=0", "launch.gpus_per_node=2 parallel=ddp")
RUN = f"{TINY} {DISTURBED} launch.max_requeues=1000 checkpoint.keep_last=2"
ACTIVE_SWEEPS = 2
DISK_MIB, DISK_MIB_A_MINUTE = 64, 2
"""The small file system: it is full for seconds only, though sweeps stay there to the end."""
PATIENCE = 180.0
"""Seconds for which a state may differ from what is there: jobs start and end in between, and Slurm itself takes a
minute or two to miss a job that had just begun on a node that died and is back at once."""


@dataclass
class Soaked:
    """A sweep that is disturbed."""

    sweep: Launched
    shape: int
    finished: dict[str, bytes] = field(default_factory=dict)
    """The metrics of each run when it was first said to have finished."""
    doubtful: dict[str, float] = field(default_factory=dict)
    """Since when the state of a run has not been what the processes say."""

    def check(self, jobs: Counter[str]) -> list[str]:
        """What is wrong with the states.

        Args:
            jobs: the number of processes that train for each job.
        """
        problems = []
        for row in self.sweep.rows:
            name = f"{self.sweep.directory.name}/{row.name}"
            if row.name in self.finished and row.state != "finished":
                problems.append(f"{name} had finished and is {row.state}")
            if row.state == "finished" and row.name not in self.finished:
                self.finished[row.name] = self.metrics(row)
            count, most = jobs[row.job or ""], 2 if self.shape else 1
            trains = row.state in ("starting", "running", "queued", "unknown")
            if count > most or (count and not trains) or (row.state == "running" and not count):
                since = self.doubtful.setdefault(row.name, time.monotonic())
                if time.monotonic() - since > PATIENCE:
                    problems.append(f"{name} is {row.state} with {count} processes, job {row.job}")
            else:
                self.doubtful.pop(row.name, None)
        return problems

    def metrics(self, row: RunState) -> bytes:
        return (self.sweep.directory / row.name / "metrics.jsonl").read_bytes()

    @property
    def is_active(self) -> bool:
        return any(row.is_active for row in self.sweep.rows)


def processes_by_job() -> Counter[str]:
    """How many processes train for each job, by its id."""
    found: Counter[str] = Counter()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if SUBMITIT_WORKER.encode() not in words or b"srun" in words[0]:
                continue
            texts = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            variables = dict(text.partition("=")[::2] for text in texts)
            array, index = variables.get("SLURM_ARRAY_JOB_ID"), variables.get("SLURM_ARRAY_TASK_ID")
            found[f"{array}_{index}" if array else variables["SLURM_JOB_ID"]] += 1
    return found


class Soak:
    """Submits sweeps and disturbs them, until it is told to stop."""

    def __init__(self, folder: Path, disk: Path, seed: int) -> None:
        self.folder, self.disk = folder, disk
        self.draw = random.Random(seed)
        self.sweeps: list[Soaked] = []
        self.done: Counter[str] = Counter()
        self.failures: set[tuple[str, str, str | None, str | None]] = set()
        """Sweep, run, job and reason: what was to be submitted again."""
        self.problems: list[str] = []

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.problems:
            if sum(each.is_active for each in self.sweeps) < ACTIVE_SWEEPS:
                self.submit()
            self.pause(self.draw.uniform(1, 15))
            self.disturb()

    def submit(self) -> None:
        number, shape = len(self.sweeps), self.draw.randrange(len(SHAPES))
        place = self.draw.choice([self.folder, self.folder, self.disk])
        words = f"{RUN} {SHAPES[shape]} seed={','.join(map(str, range(SEEDS)))}"
        words += " launch.snapshot=false" if place == self.disk or self.draw.random() < 0.5 else ""
        self.sweeps.append(Soaked(submit(place / str(number), words), shape))

    def pause(self, seconds: float) -> None:
        """Checks states while it waits."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(1)
            self.check()

    def check(self) -> None:
        jobs = processes_by_job()
        for each in self.sweeps:
            self.problems += each.check(jobs)
            failed = [row for row in each.sweep.rows if row.state in ("failed", "vanished")]
            self.failures.update((each.sweep.directory.name, row.name, row.job, row.reason) for row in failed)

    def disturb(self) -> None:
        each = self.draw.choice(self.sweeps[-3:])
        rows = [row for row in each.sweep.rows if row.is_active]
        name, act = self.draw.choice(list(self.ways().items()))
        if rows or act == self.rerun:
            with suppress(subprocess.CalledProcessError, ProcessLookupError):  # it has ended by now
                act(each, self.draw.choice(rows or each.sweep.rows))
                self.done[name] += 1

    def ways(self) -> dict[str, Callable[[Soaked, RunState], object]]:
        return {
            "requeue": lambda each, row: slurm("scontrol", "requeue", row.job or ""),
            "TERM": lambda each, row: slurm("scancel", "--signal=TERM", row.job or ""),
            "USR2": lambda each, row: slurm("scancel", "--signal=USR2", row.job or ""),
            "preempt": lambda each, row: slurm(
                *["sbatch", "-p", "urgent", "-N4", "--exclusive", "-o", "/dev/null", "--wrap"], "sleep 3"
            ),
            "kill": self.kill,
            "node": self.kill_node,
            "cancel": lambda each, row: self.launch("cancel", each),
            "rerun": self.rerun,
            "disk": self.fill_disk,
        }

    def kill(self, each: Soaked, row: RunState) -> None:
        if pids := each.sweep.pids():
            os.kill(self.draw.choice(pids), signal.SIGKILL)

    def kill_node(self, each: Soaked, row: RunState) -> None:
        cluster.kill_node(f"node{self.draw.randint(1, 4)}")
        self.pause(self.draw.uniform(1, 10))
        cluster.start(Path(os.environ["SLURM_LAB_DIR"]), PORT)  # revives it

    def rerun(self, each: Soaked, row: RunState) -> None:
        self.launch("rerun", each)

    def fill_disk(self, each: Soaked, row: RunState) -> None:
        with suppress(OSError), (self.disk / "filler").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        self.pause(self.draw.uniform(1, 10))
        (self.disk / "filler").unlink()

    def launch(self, command: str, each: Soaked) -> None:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            code = launch([command, str(each.sweep.directory)])
        if code and not shutil.disk_usage(self.disk).free < 2**20:
            self.problems.append(f"launch {command} {each.sweep.directory}: exit code {code}")

    def finish(self, seconds: float) -> None:
        """Submits again what is not finished, until all is."""
        end = time.monotonic() + seconds
        while not self.problems and (left := [each for each in self.sweeps if not self.is_finished(each)]):
            for each in left:
                if not each.is_active:
                    self.launch("rerun", each)
            self.pause(3)
            if time.monotonic() > end:
                states = [
                    (each.sweep.directory.name, row.name, row.state)
                    for each in left
                    for row in each.sweep.rows
                ]
                self.problems.append(f"not within {seconds:g} s: {states}")
        self.check()  # some may have finished since the last look

    def is_finished(self, each: Soaked) -> bool:
        return all(row.state == "finished" for row in each.sweep.rows)

    def verify(self, calm: Launched, shape: int) -> None:
        """Every run has the bits of the undisturbed one, and did not train after it had finished."""
        for each in self.sweeps:
            if each.shape == shape:
                for row, still in zip(each.sweep.rows, calm.rows, strict=True):
                    run = each.sweep.directory / row.name
                    found = compare(run, calm.directory / still.name)
                    found += (
                        ["trained after its end"] if each.metrics(row) != each.finished.get(row.name) else []
                    )
                    self.problems += [f"{run}: differs in {', '.join(found)}"] if found else []


@contextmanager
def mounted(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A small file system in memory, which the nodes see since it is mounted before they start."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def soak(minutes: float, seed: int) -> list[str]:
    """Returns what went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("SLURM_LAB_CPUS", "3")
    mebibytes = DISK_MIB + round(DISK_MIB_A_MINUTE * minutes)
    with LOCK.open("w") as lock, mounted(folder / "disk", mebibytes) as disk:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cluster.start(Path(tempfile.mkdtemp(prefix="slurm-")), PORT)
        try:
            seeds = f"seed={','.join(map(str, range(SEEDS)))}"
            calm = [submit(folder / f"calm_{i}", f"{RUN} {shape} {seeds}") for i, shape in enumerate(SHAPES)]
            for each in calm:
                assert [row.state for row in each.wait(1200)] == ["finished"] * SEEDS, each.rows
            soaked = Soak(folder, disk, seed)
            soaked.run(60 * minutes)
            soaked.finish(1800)
            if not soaked.problems:  # else not all have finished
                for shape, each in enumerate(calm):
                    soaked.verify(each, shape)
            restarts = sum(row.restarts for each in soaked.sweeps for row in each.sweep.rows)
            print(f"{SEEDS * len(soaked.sweeps)} runs, restarted {restarts} times by their last jobs")
            print(f"disturbed: {dict(soaked.done)}")
            for reason, count in Counter(reason for *_, reason in soaked.failures).items():
                print(f"submitted again, {count} times: {reason}")
        finally:
            cluster.stop()
    return soaked.problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if reason := cluster.missing():
        sys.exit(reason)
    problems = soak(args.minutes, args.seed)
    print("\n".join(problems) or "nothing is wrong")
    sys.exit(bool(problems))
