"""The records of a run in metrics.jsonl and clock.jsonl, of which any line may be damaged."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from trainer.metrics import STEP_PARTS
from trainer.options import is_number
from trainer.rundir.files import CHECKSUM, check_line
from trainer.rundir.foreign import MAX_NUMBER, parse_json, read_lines
from trainer.rundir.strict_json import as_float


class MetricPoint(NamedTuple):
    """A metric's value at an optimizer step."""

    step: int
    seconds: float | None
    """Of training until then; None where the clock's record is missing."""
    value: float


class Record(NamedTuple):
    """A line of metrics.jsonl or clock.jsonl."""

    kind: str
    step: int
    values: dict[str, float]
    """Numbers by their names; what was not finite is nan."""


def read_records(path: Path, names: tuple[str, ...] = ()) -> tuple[list[Record], int]:
    """The records of a JSON Lines file but curvature's, which are long, and the number of lines that are no record.

    Args:
        path: the file.
        names: of the values that are kept; empty: all but the epoch.
    """
    records, bad = [], 0
    for line in read_lines(path):
        if line.startswith(b'{"kind": "curvature"'):
            continue
        try:
            records.append(parse_record(line, names))
        except (ValueError, TypeError, KeyError):
            bad += 1
    return records, bad


def parse_record(line: bytes, names: tuple[str, ...]) -> Record:
    """The record in a line.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    check_line(line)
    record = parse_json(line)
    kind, step = record["kind"], record["step"]
    names = names or tuple(record.keys() - {"kind", "step", "epoch", CHECKSUM})
    values = {name: record[name] for name in names if name in record}
    if not isinstance(kind, str) or not isinstance(step, int) or not 0 <= step <= MAX_NUMBER:
        raise ValueError(line)
    if not all(value is None or is_number(value) for value in values.values()):
        raise ValueError(line)
    return Record(kind, step, {name: as_float(value) for name, value in values.items()})


def points(
    records: Iterable[Record], kind: str, seconds: Mapping[tuple[str, int], float]
) -> dict[str, list[MetricPoint]]:
    """The metrics in the records of a kind."""
    metrics: dict[str, list[MetricPoint]] = {}
    for record in records:
        if record.kind == kind:
            at = seconds.get((kind, record.step))
            for name, value in record.values.items():
                metrics.setdefault(name, []).append(MetricPoint(record.step, at, value))
    return metrics


def seconds_per_step(clock: Iterable[Record]) -> float | None:
    """Training seconds per step between the first record and the last; None if there is but one.

    The steps before the first record, which include compilation and warm-up, do not count.
    """
    timed = [record for record in clock if "seconds" in record.values]
    if len(timed) < 2 or timed[0].step == timed[-1].step:
        return None
    first, last = timed[0], timed[-1]
    return (last.values["seconds"] - first.values["seconds"]) / (last.step - first.step)


SPEEDS = ("flops_per_second", "mfu", "data_wait", *STEP_PARTS, "gpu_utilization", "gpu_watts")
"""Numbers of the clock of which a run has a median."""


def speeds(clock: Sequence[Record]) -> dict[str, float]:
    """The median of each of `SPEEDS` over the records that have it."""
    found = {name: [r.values[name] for r in clock if name in r.values] for name in SPEEDS}
    return {name: median(values) for name, values in found.items() if values}
