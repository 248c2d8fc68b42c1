"""The report's tables as cells of text."""

from collections import Counter
from dataclasses import dataclass

from trainer.metrics import memory
from trainer.report.formatting import NONE, basis, difference, duration, interval, number, p_value, remark
from trainer.report.grouping import shown
from trainer.report.read_runs import STATES
from trainer.report.sensitivity import Curve, Sensitivity
from trainer.report.summary import Report, Summary


@dataclass(frozen=True)
class Table:
    title: str
    heads: list[str]
    rows: list[list[str]]


def tables(report: Report) -> list[Table]:
    """Of results, costs, swept options, differences and unfinished runs, as far as there are any."""
    found = [result_table(report), cost_table(report)]
    found += [sensitivity_table(each) for each in report.sensitivities]
    if report.comparisons:
        found.append(comparison_table(report))
    if any(run.state != "finished" for run in report.runs):
        found.append(unfinished_table(report))
    return found


def result_table(report: Report) -> Table:
    by = ", ".join(key.removesuffix(".name") for key in report.keys)
    rows = [
        [s.group.label, states(s), interval(report.metric, s.final), interval(report.metric, s.best)]
        for s in report.summaries
    ]
    return Table(
        f"{report.metric} of {len(report.runs)} runs by {by}", ["group", "runs", "final", "best"], rows
    )


def states(summary: Summary) -> str:
    """``3 finished, 1 failed``."""
    counts = Counter(run.state for run in summary.group.runs)
    return ", ".join(f"{n} {state}" for state in STATES if (n := counts[state]))


def cost_table(report: Report) -> Table:
    heads = ["group", "steps", "training time", "time/step", "overhead", "memory"]
    if report.target is not None:
        heads += [f"reached {number(report.metric, report.target)}", "after steps", "after time"]
    fastest = min((s.seconds_per_step for s in report.summaries if s.seconds_per_step), default=None)
    return Table("Cost", heads, [cost_row(summary, fastest) for summary in report.summaries])


def cost_row(summary: Summary, fastest: float | None) -> list[str]:
    speed, peak, reached = summary.seconds_per_step, summary.memory_mib, summary.reached
    row = [
        summary.group.label,
        f"{summary.steps:.0f}" if summary.steps is not None else NONE,
        duration(summary.seconds) if summary.seconds is not None else NONE,
        duration(speed) if speed is not None else NONE,
        f"× {speed / fastest:.2f}" if speed and fastest else NONE,
        memory(peak) if peak is not None else NONE,
    ]
    if reached is None:
        return row
    return [
        *row,
        f"{reached.reached} of {reached.settled}",
        "not reached" if reached.steps is None else f"{reached.steps:.0f}",
        "not reached" if reached.seconds is None else duration(reached.seconds),
    ]


def sensitivity_table(sensitivity: Sensitivity) -> Table:
    """A row for each value of the option, a column for each curve, whose best value has a star."""
    metric, curves = sensitivity.metric, sensitivity.curves
    values = sorted({value for curve in curves for value in curve.finals})
    rows = [[shown(value), *(tried(metric, curve, value) for curve in curves)] for value in values]
    heads = [sensitivity.key, *(curve.label for curve in curves)]
    return Table(f"{metric} against {sensitivity.key}", heads, rows)


def tried(metric: str, curve: Curve, value: float) -> str:
    """What became of a value of the option."""
    if value not in curve.finals:
        return NONE
    if value in curve.means:
        return "★ " * (value == curve.best) + number(metric, curve.means[value])
    return "diverged" if curve.finals[value] else "failed"


def comparison_table(report: Report) -> Table:
    rows = []
    for comparison in report.comparisons:
        cells = [NONE] * 3
        if found := comparison.difference:
            p = NONE if comparison.p is None else p_value(comparison.p).lstrip("p =")
            cells = [difference(report.metric, found.interval), basis(found), p]
        rows.append([comparison.other, *cells, "yes" if comparison.claimed else "no"])
    best = report.comparisons[0].best
    return Table(
        f"{best} less each other group: {report.metric}",
        ["group", "difference", "test", "p", "claimed"],
        rows,
    )


def unfinished_table(report: Report) -> Table:
    rows = []
    for run in report.runs:
        if run.state != "finished":
            points = run.evaluations.get(report.metric)
            value = number(report.metric, points[-1].value) if points else NONE
            rows.append([str(run.path), run.state, str(run.step), value, remark(run)])
    return Table("Runs that have not finished", ["run", "state", "step", report.metric, "remark"], rows)
