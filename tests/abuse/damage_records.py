"""Changes single bytes of the records of a run and of a sweep, and says what comes of each.

    python tests/abuse/damage_records.py --changes 2000

Of status.json, config.yaml and metrics.jsonl of a run, and of sweep.json. Each command that reads them must skip what
is damaged, refuse it or tell it in one line; none may end in a traceback, and none may take another value for the one
that was written.
"""

import argparse
import collections
import contextlib
import io
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from launch.cli import main as launch
from trainer.cli.train import main as train
from trainer.report.__main__ import main as report

TINY = (
    "model.widths=[4] data.batch_size=64 optimizer=sgd monitor.sinks=[console,jsonl] monitor.predictions=0 "
    "monitor.log_images=false loop.max_steps=4 loop.log_every=1 checkpoint.every_steps=2"
)
RUN, SWEEP = Path("sweep", "0_run"), Path("sweep")
FILES = [RUN / "status.json", RUN / "config.yaml", RUN / "metrics.jsonl", SWEEP / "sweep.json"]

Answer = tuple[int | str, str, str]
"""The exit code of a command, or the exception that it raised, and what it printed to standard output and errors."""


def make(root: Path) -> None:
    """A sweep of one run in a directory, trained to its end."""
    dry = ["launch=local", "launch.gpus_per_node=0", "launch.snapshot=false", f"launch.dir={root / SWEEP}"]
    assert answer(lambda: launch([*TINY.split(), *dry, "name=run"]))[0] == 0
    assert answer(lambda: launch(["wait", str(root / SWEEP)]))[0] == 0


def answer(command: Callable[[], int]) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: int | str = command()
        except SystemExit as exit_:
            code = exit_.code or 0
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    return code, out.getvalue(), err.getvalue()


def commands(root: Path) -> dict[str, Callable[[], int]]:
    """What reads the records; that comes first which writes nothing."""
    run = root / RUN
    return {
        "report": lambda: report([str(run), "--json"]),
        "status": lambda: launch(["status", str(root / SWEEP), "--json"]),
        "going on": lambda: train(["--config-path", str(run), "--config-name", "config"]),
    }


def judged(before: Answer, after: Answer) -> str:
    """What came of a change, by what a command answered before and after it."""
    if isinstance(after[0], str):
        return f"TRACEBACK {after[0]}"
    if after[2] != before[2] or after[0] != before[0]:
        return "told" if after[2].count("\n") <= before[2].count("\n") + 1 else f"MANY LINES {after[2]}"
    if after[1] == before[1]:
        return "the same"
    words = ("damaged", "unknown", "unreadable", "warning", "cannot", "reads format", "going on from")
    if any(after[1].count(word) > before[1].count(word) for word in words):
        return "told"
    return f"ANOTHER VALUE {after[1]}"


def changes(root: Path, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Makes the changes, each undone before the next: where it was, and what came of it."""
    chance = random.Random(seed)
    kept = root.with_name("kept")
    shutil.copytree(root, kept, symlinks=True)
    before = {name: answer(command) for name, command in commands(root).items()}
    for number in range(count):
        file = FILES[number % len(FILES)]
        original = (kept / file).read_bytes()
        place, value = chance.randrange(len(original)), chance.randrange(1, 256)
        (root / file).write_bytes(original[:place] + bytes([original[place] ^ value]) + original[place + 1 :])
        where = f"{file.name}, byte {place} changed by {value}"
        for name, command in commands(root).items():
            yield f"{where}, {name}", judged(before[name], answer(command))
        shutil.rmtree(root)
        shutil.copytree(kept, root, symlinks=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--changes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    found: collections.Counter[tuple[str, str, str]] = collections.Counter()
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        root.mkdir()
        make(root)
        for where, what in changes(root, args.changes, args.seed):
            file, _, command = where.split(", ")
            kind = " ".join(word for word in what.split() if word.isupper()) or what
            found[file, command, kind] += 1
            if kind.isupper():
                bad += 1
                print(f"{where}: {what}", flush=True)
    for (file, command, kind), count in sorted(found.items()):
        print(f"{file:<14} {command:<9} {kind:<14} {count}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
