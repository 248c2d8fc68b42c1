"""Kills a run with SIGKILL at random moments, resumes it each time, and compares it with an undisturbed one.

    python tests/training/kill_and_resume.py --kills 30

Half of the kills come while a checkpoint is being written. At the end parameters, optimizer state, random numbers
and metrics.jsonl must be those of the undisturbed run, bit for bit.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.forks import FORKS
from trainer.checkpoint import storage
from trainer.checkpoint.reading import read_verified
from trainer.cli.train import main

LICENSE = Path(__file__).parents[2] / "LICENSE"

RUNS = {
    "digits": "loop.max_epochs=4 data=digits model=cnn model.dropout=0.1 optimizer=adafisher loop.ema=0.99 "
    "loop.accumulate=2 loop.clip_norm=1 checkpoint.every_steps=4 loop.log_every=3",
    "text": f"loop.max_steps=60 data=text data.path={LICENSE} data.context_length=32 data.batch_size=8 model=gpt "
    "model.layers=2 model.width=32 model.heads=2 model.dropout=0.1 optimizer=adamw checkpoint.every_steps=5 "
    "loop.log_every=3 loop.eval_every=10",
}


def start(overrides: str, directory: Path) -> BaseProcess:
    """Runs the trainer in a child process, forked from one that has imported it and done nothing else."""
    process = FORKS.Process(target=run, args=(overrides, directory), daemon=True)
    process.start()
    return process


def run(overrides: str, directory: Path) -> None:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        sys.exit(main([*overrides.split(), f"hydra.run.dir={directory}"]))


def finish(overrides: str, directory: Path) -> None:
    process = start(overrides, directory)
    process.join()
    assert process.exitcode == 0, f"the run in {directory} ended with {process.exitcode}"


def kill_once(overrides: str, directory: Path, moments: random.Random, longest: float) -> str:
    """Starts or resumes the run and kills it; says when."""
    process = start(overrides, directory)
    begun = time.monotonic()
    if moments.random() < 0.5:
        wait_for_save(directory, moments.randint(1, 4), process)
        time.sleep(moments.uniform(0, 0.03))
    else:
        time.sleep(moments.uniform(0, longest))
    when = time.monotonic() - begun
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        return f"the run had ended before, with {process.exitcode}"
    where = "while saving" if saves_under_way(directory) else "between two saves"
    newest = storage.list_checkpoints(directory / "checkpoints")
    return f"killed after {when:.2f} s, {where}, newest checkpoint {newest[0].name if newest else 'none'}"


def wait_for_save(directory: Path, count: int, process: BaseProcess) -> None:
    """Until that many saves have begun, or the process has ended."""
    seen = set(parts := saves_under_way(directory))
    while len(seen) < count + len(parts) and process.is_alive():
        time.sleep(0.001)
        seen |= saves_under_way(directory)


def saves_under_way(directory: Path) -> set[tuple[str, int]]:
    """Name and inode of the half-written checkpoints: those that a kill left behind are told from new ones."""
    found = set()
    for part in directory.glob("checkpoints/.step_*.part"):
        with contextlib.suppress(FileNotFoundError):
            found.add((part.name, part.stat().st_ino))
    return found


def content(directory: Path) -> dict[str, Any]:
    newest = storage.list_checkpoints(directory / "checkpoints")[0]
    read = read_verified(newest)
    values = read.pop("values")
    values["counters"].pop("seconds")
    values["monitors"] = {
        "jsonl": values["monitors"]["jsonl"]["metrics"]
    }  # the clock's file has its own length
    return {"name": newest.name, **read, "values": values}


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """The places where two nested structures differ in a single bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(key for key in b if key not in a)]
        return [d for key in keys for d in differences(a.get(key), b.get(key), f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [
            d for i, pair in enumerate(zip(a, b, strict=True)) for d in differences(*pair, f"{where}/{i}")
        ]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    elif isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        same = a.tobytes() == b.tobytes()
    else:
        same = type(a) is type(b) and a == b
    return [] if same else [where]


def compare(disturbed: Path, undisturbed: Path) -> list[str]:
    """What of a disturbed run is not as that of the undisturbed one."""
    found = differences(content(disturbed), content(undisturbed))
    if (disturbed / "metrics.jsonl").read_bytes() != (undisturbed / "metrics.jsonl").read_bytes():
        found.append("metrics.jsonl")
    return found


def trial(overrides: str, root: Path, kills: int, seed: int) -> list[str]:
    """Runs undisturbed, then with that many kills; returns the differences."""
    undisturbed, disturbed = root / "undisturbed", root / "disturbed"
    begun = time.monotonic()
    finish(overrides, undisturbed)
    longest = time.monotonic() - begun
    moments = random.Random(seed)
    for number in range(1, kills + 1):
        print(f"  {number}: {kill_once(overrides, disturbed, moments, longest / 2)}", flush=True)
        if (disturbed / "status.json").exists() and '"finished"' in (disturbed / "status.json").read_text():
            problems = compare(disturbed, undisturbed)
            if problems:
                return problems
            shutil.rmtree(disturbed)  # on with the kills from the start
    finish(overrides, disturbed)
    return compare(disturbed, undisturbed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", choices=RUNS, nargs="*", default=list(RUNS))
    args = parser.parse_args()
    failed = False
    for name in args.run:
        print(f"{name}: {RUNS[name]}")
        with tempfile.TemporaryDirectory() as root:
            problems = trial(RUNS[name], Path(root), args.kills, args.seed)
        print("  the same to the bit" if not problems else f"  DIFFERENT: {', '.join(problems)}")
        failed |= bool(problems)
    sys.exit(failed)
