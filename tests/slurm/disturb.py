"""Disturbs jobs on the test cluster in every way that a real one knows, and compares them with an undisturbed one.

    python tests/slurm/disturb.py --tasks 4 [--way requeue USR2 ...]

Each run must finish with the parameters, the optimizer's state, random numbers and metrics of the undisturbed run,
bit for bit, and repeat no step after a signal. A way takes one to five minutes.
"""

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.slurm import cluster
from tests.slurm.cluster import DISTURBED, TINY, Launched, slurm, submit
from tests.training.kill_and_resume import compare

SHAPES = {
    1: "launch.nodes=1 launch.gpus_per_node=0",
    4: "launch.nodes=2 launch.gpus_per_node=2 parallel=fsdp",
}


def kill_task(run: Launched) -> None:
    os.kill(max(run.pids()), signal.SIGKILL)


def kill_node(run: Launched) -> None:
    """The last node of the job, so that the job's script survives."""
    nodes = slurm(
        "scontrol", "show", "hostnames", slurm("squeue", "-h", "-j", run.job, "-o", "%N").strip()
    ).split()
    cluster.kill_node(nodes[-1])


WAYS: dict[str, tuple[str, Callable[[Launched], object], bool]] = {
    "requeue": ("", lambda run: slurm("scontrol", "requeue", run.job), True),
    "USR2": ("", lambda run: slurm("scancel", "--signal=USR2", run.job), True),
    "TERM": ("", lambda run: slurm("scancel", "--signal=TERM", run.job), True),
    "early": ("", lambda run: slurm("scancel", "--signal=TERM", run.job), True),
    "limit": ("launch.time=1 launch.signal_seconds=10 loop.max_steps=250", lambda run: None, True),
    "preempt": (
        "",
        lambda run: slurm(
            "sbatch", "-p", "urgent", "-N4", "--exclusive", "-o", "/dev/null", "--wrap=sleep 5"
        ),
        True,
    ),
    "kill": ("", kill_task, False),
    "node": ("", kill_node, False),
}
"""Options besides, what is done to it, whether it gets a signal before."""


@cache
def undisturbed(line: str, folder: Path) -> Launched:
    """One for all ways with the same options."""
    run = submit(folder / f"calm_{len(os.listdir(folder))}", line)
    run.wait(400)
    return run


def disturb(way: str, tasks: int, folder: Path) -> list[str]:
    options, act, signalled = WAYS[way]
    line = f"{TINY} {DISTURBED} {SHAPES[tasks]} {options}"
    calm = undisturbed(line.replace("launch.time=1 ", ""), folder)
    begun = time.monotonic()
    run = submit(folder / way, line)
    if way == "early":
        cluster.until(lambda: len(run.pids()) == tasks, 60, way)
    else:
        run.trains(20)
    act(run)
    rows = run.wait(400)
    row = rows[0]
    log = (run.run / "run.log").read_text() if (run.run / "run.log").exists() else run.log()
    stops = [int(step) for step in re.findall(r"stopped by \w+ at step (\d+)", log)]
    resumes = [int(step) for step in re.findall(r"from .*/step_(\d+)", log)]
    print(
        f"  {row.state} after {row.restarts} restarts, stopped at {stops}, went on from {resumes}, "
        f"{time.monotonic() - begun:.0f} s"
    )
    problems = [] if row.state == "finished" else [f"{row.state}: {row.reason}"]
    if not row.restarts and way != "early":
        problems.append("was not disturbed")
    if signalled and stops != resumes:
        problems.append("repeated steps")
    return problems or compare(run.run, calm.run)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, choices=SHAPES, default=4)
    parser.add_argument("--way", choices=WAYS, nargs="*", default=list(WAYS))
    args = parser.parse_args()
    if reason := cluster.missing():
        sys.exit(reason)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp(prefix="disturb-"))
    cluster.start(Path(tempfile.mkdtemp(prefix="slurm-")), 16900)
    failed = False
    try:
        for way in args.way:
            print(f"{way}, {args.tasks} tasks", flush=True)
            problems = disturb(way, args.tasks, folder)
            print(
                "  the same to the bit" if not problems else f"  DIFFERENT: {', '.join(problems)}", flush=True
            )
            failed |= bool(problems)
            cluster.start(Path(os.environ["SLURM_LAB_DIR"]), 16900)  # revives dead nodes
    finally:
        cluster.stop()
    sys.exit(failed)
