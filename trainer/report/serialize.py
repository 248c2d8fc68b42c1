"""The report for programs: CSV and JSON, in full precision."""

import csv
import io
from collections import Counter
from dataclasses import asdict
from typing import Any

from trainer.report.caveats import notes
from trainer.report.formatting import verdict
from trainer.report.read_runs import STATES
from trainer.report.records import SPEEDS
from trainer.report.sensitivity import as_record
from trainer.report.statistics import Interval
from trainer.report.summary import Report, Summary


def records(report: Report) -> list[dict[str, Any]]:
    """A flat record of each group, in full precision; None for what is not known."""
    return [record(summary, report) for summary in report.summaries]


def record(summary: Summary, report: Report) -> dict[str, Any]:
    """The flat record of a group."""
    counts = Counter(run.state for run in summary.group.runs)
    found: dict[str, Any] = {
        "group": summary.group.label,
        **summary.group.values,
        "metric": report.metric.name,
    }
    found |= {"runs": len(summary.group.runs), "counted": len(summary.finals)}
    found |= {state: counts[state] for state in STATES}
    found |= {**spread_record("final", summary.final), **spread_record("best", summary.best)}
    if reached := summary.reached:
        found |= {"target": report.target, "reached": reached.reached, "settled": reached.settled}
        found |= {"steps_to_target": reached.steps, "seconds_to_target": reached.seconds}
    found |= {"steps": summary.steps, "seconds": summary.seconds}
    return (
        found
        | {"seconds_per_step": summary.seconds_per_step, "memory_mib": summary.memory_mib}
        | {name: summary.speeds.get(name) for name in SPEEDS}
    )


def interval_record(name: str, value: Interval | None) -> dict[str, float | None]:
    """``NAME_mean`` and ``NAME_half_interval``."""
    mean, half = (value.mean, value.half) if value else (None, None)
    return {f"{name}_mean": mean, f"{name}_half_interval": half}


def spread_record(name: str, value: Interval | None) -> dict[str, float | None]:
    """What `interval_record` gives, and ``NAME_std``."""
    return {**interval_record(name, value), f"{name}_std": value.deviation if value else None}


def csv_text(report: Report) -> str:
    """The records as CSV with a header; empty cells for None."""
    rows = records(report)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(report: Report) -> dict[str, Any]:
    """The entire report as a nested record, for JSON."""
    return {
        "metric": report.metric.name,
        "by": report.keys,
        "groups": records(report),
        "comparisons": [
            {
                "first": c.first,
                "other": c.other,
                "claimed": c.claimed,
                "p": c.p,
                "confidence": c.confidence,
                "more_seeds": c.more_seeds,
                **(interval_record("difference", c.interval) if c.interval else {}),
                "verdict": verdict(c, report.metric),
            }
            for c in report.comparisons
        ],
        "published": [
            {
                "group": each.group,
                "metric": each.metric.name,
                "source": each.source,
                "departures": each.departures,
                "published": asdict(each.published),
                "here": each.here and {**asdict(each.here), "seeds": each.seeds},
            }
            for each in report.published
        ],
        "sensitivities": [as_record(each) for each in report.sensitivities],
        "runs": [
            {
                "path": str(run.path),
                "state": run.state,
                "step": run.step,
                "seed": run.seed,
                "error": run.error,
            }
            for run in report.runs
        ],
        "notes": notes(report),
    }
