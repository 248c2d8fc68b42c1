"""Notes of the report: reasons to read its numbers with care."""

import json
from collections import Counter

from trainer.formatting import counted
from trainer.report.grouping import Group, config_text, swept_keys
from trainer.report.published import PublishedResult
from trainer.report.read_runs import MACHINE, RecordedRun
from trainer.report.summary import Report


def notes(report: Report) -> list[str]:
    """One line each, the most serious first."""
    groups = [summary.group for summary in report.summaries]
    found = [*edges(report), *failures(groups), *mixtures(groups), *repetitions(groups)]
    found += [*sources(report.published), *machines(report.runs), *shared_processes(groups)]
    found += [
        f"{unreadable} unreadable line(s) skipped: {run.path}"
        for run in report.runs
        if (unreadable := run.unreadable)
    ]
    return found


def edges(report: Report) -> list[str]:
    """Options whose best value is the least or the largest that was tried."""
    return [
        f"The best {each.key} of {curve.label}, {config_text(curve.best)}, is at the edge of the values "
        f"tried: a better one may lie beyond."
        for each in report.sensitivities
        for curve in each.curves
        if curve.at_edge
    ]


def failures(groups: list[Group]) -> list[str]:
    """Groups with failed runs."""
    return [
        f"{failed} of {len(group.runs)} runs of {group.label} failed: its means are over the others."
        for group in groups
        if (failed := sum(run.state == "failed" for run in group.runs))
    ]


def mixtures(groups: list[Group]) -> list[str]:
    """Options that differ within a group, other than the seed."""
    mixed = dict.fromkeys(key for group in groups for key in swept_keys(group.runs) if key != "seed")
    return [f"Groups mix runs that differ in {', '.join(mixed)}."] if mixed else []


def repetitions(groups: list[Group]) -> list[str]:
    """Groups with several finished runs of the same config."""
    return [
        f"{group.repeated} finished run(s) of {group.label} repeat another's config: only the newest counts."
        for group in groups
        if group.repeated
    ]


def sources(results: list[PublishedResult]) -> list[str]:
    """Where published results come from, and in what the runs here departed from their recipes."""
    found = [f"Published: {source}." for source in dict.fromkeys(each.source for each in results)]
    found += [
        f"{each.group} departs from the published recipe by {', '.join(each.departures)}."
        for each in results
        if each.departures
    ]
    return found


def machines(runs: list[RecordedRun]) -> list[str]:
    """Differences between the machines of the runs."""
    found = []
    for fact in MACHINE:
        counts = Counter(json.dumps(run.environment[fact]) for run in runs if fact in run.environment)
        if len(counts) > 1:
            values = ", ".join(f"{value} ({counted(n, 'run')})" for value, n in counts.items())
            found.append(f"Times may not be comparable: the runs differ in {fact}: {values}.")
    return found


def shared_processes(groups: list[Group]) -> list[str]:
    """Groups whose runs trained in one process: its peak memory is that of the run with the highest peak."""
    owners: dict[tuple[str, int], set[str]] = {}
    for group in groups:
        for run in group.runs:
            if run.process:
                owners.setdefault(run.process, set()).add(group.label)
    if any(len(labels) > 1 for labels in owners.values()):
        return [
            "Memory cannot be compared: runs of several groups shared a process, and it is the peak of the process."
        ]
    return []
