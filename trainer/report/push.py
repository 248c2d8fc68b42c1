"""``python -m trainer.report push RUN… --to TRACKER``: runs in a tracker, from the files of their directories.

It can be repeated, for runs that train as well: a tracker's run is found again, and gets only what it lacks.
"""

from argparse import Namespace
from pathlib import Path

from trainer.cli.common import Parser, progress
from trainer.errors import MachineError, one_line
from trainer.report.read_runs import RecordedRun, read_runs
from trainer.report.records import Record, read_records
from trainer.rundir.files import METRICS
from trainer.rundir.status import FINISHED
from trainer.trackers.base import TRACKERS, TrackedRun, Tracker, need_tracker, open_tracker, tracked


def parser() -> Parser:
    """The command line's options."""
    parser = Parser(
        prog="python -m trainer.report push",
        description="Adds to a tracker what it lacks of runs: options, metrics, speeds and how they ended. "
        "Can be repeated. The tracker's own environment variables say where its server is.",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="RUN", help="run directories, or folders of them"
    )
    parser.add_argument("--to", required=True, choices=sorted(TRACKERS), help="the tracker")
    return parser


def run(args: Namespace) -> int:
    """Pushes the runs and says how many; returns the exit code.

    Raises:
        UserError: the folders contain no run, or the tracker's package is not installed.
        MachineError: the tracker fails.
    """
    need_tracker(args.to, f"--to {args.to}")
    runs = [run for run in read_runs(args.folders) if run.state not in ("queued", "unreadable")]
    for recorded in progress(runs, "pushing"):
        try:
            push(recorded, args.to)
        except Exception as error:  # whatever the tracker's package raises
            cause = f"{type(error).__name__}: {one_line(error)}"
            raise MachineError(f"{recorded.path} cannot be pushed to {args.to}: {cause}") from error
    print(f"{args.to}: {len(runs)} {'run' if len(runs) == 1 else 'runs'} pushed")
    return FINISHED


def push(recorded: RecordedRun, to: str) -> None:
    """Adds to a tracker what it lacks of a run."""
    name = str(recorded.config.get("name", recorded.path.name))
    tracker = open_tracker(to, TrackedRun(recorded.path, name, recorded.config))
    metrics, _ = read_records(recorded.path / METRICS)
    clock, _ = read_records(recorded.path / "clock.jsonl")
    log_records(tracker, metrics, clock)
    tracker.close(recorded.state)


def log_records(tracker: Tracker, metrics: list[Record], clock: list[Record]) -> None:
    """Adds records to a tracker as the run's sink does.

    A callback's numbers have no record of the clock: the training seconds are those of the record before.
    """
    clock_of = {(record.kind, record.step): record.values for record in clock}
    seconds = 0.0
    for kind, step, values in metrics:
        times = clock_of.get((kind, step), {})
        seconds = times.get("seconds", seconds)
        tracker.log(step, seconds, values if kind == "scalars" else tracked(values, times))
