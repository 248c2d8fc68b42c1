"""The report's tables as cells of text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.formatting import counted, duration, memory
from trainer.metrics import STEP_PARTS, Metric, metric_of
from trainer.report.formatting import NONE, basis, difference, interval, p_value, remark
from trainer.report.grouping import config_text
from trainer.report.published import PublishedResult, Sample
from trainer.report.read_runs import STATES
from trainer.report.records import SPEEDS
from trainer.report.sensitivity import Curve, Sensitivity
from trainer.report.summary import Report, Summary, experiments

HEADS = {
    "flops_per_second": "FLOP/s",
    "mfu": "MFU",
    "data_wait": "waits for data",
    "forward_backward": "forward, backward",
    "collectives": "collectives",
    "optimizer": "optimizer",
    "refresh": "refreshes",
    "gpu_utilization": "GPU",
    "gpu_watts": "watts",
}
"""Of the columns of `trainer.report.records.SPEEDS`."""


@dataclass(frozen=True)
class Table:
    """A title, and rows of cells below their heads."""

    title: str
    heads: list[str]
    rows: list[list[str]]


def tables(report: Report) -> list[Table]:
    """The tables of results, published ones, costs, sensitivities, differences, unfinished runs; no empty ones."""
    found = [result_table(report)]
    if report.published:
        found.append(published_table(report.published))
    found.append(cost_table(report))
    if any(name in s.speeds for s in report.summaries for name in STEP_PARTS):
        found.append(parts_table(report))
    if any(s.step_memory for s in report.summaries):
        found.append(step_memory_table(report))
    found += [sensitivity_table(each) for each in report.sensitivities]
    found += comparison_tables(report)
    if any(run.state != "finished" for run in report.runs):
        found.append(unfinished_table(report))
    return found


def result_table(report: Report) -> Table:
    """Each group's runs by state, and its final and best mean of the metric."""
    by = ", ".join(key.removesuffix(".name") for key in report.keys)
    count = counted(len(report.runs), "run")
    rows = [
        [
            s.group.label,
            states(s),
            *(interval(report.metric, each, report.spread) for each in (s.final, s.best)),
        ]
        for s in report.summaries
    ]
    return Table(f"{report.metric.name} of {count} by {by}", ["group", "runs", "final", "best"], rows)


def published_table(results: Sequence[PublishedResult]) -> Table:
    """Each group's published result and its own, both as mean ± standard deviation."""
    rows = [
        [
            each.group,
            each.metric.name,
            *(sample(each.metric, s) for s in (each.published, each.here)),
            str(each.seeds),
        ]
        for each in results
    ]
    heads = ["group", "metric", "published", "here", "seeds here"]
    return Table("Published and here, mean ± standard deviation", heads, rows)


def sample(metric: Metric, value: Sample | None) -> str:
    """``96.25% ± 0.20%``; `NONE` where there is none."""
    if value is None:
        return NONE
    beside = "" if value.deviation is None else f" ± {metric.text(value.deviation)}"
    return f"{metric.text(value.mean)}{beside}"


def states(summary: Summary) -> str:
    """The number of a group's runs in each state: ``3 finished, 1 failed``."""
    counts = Counter(run.state for run in summary.group.runs)
    return ", ".join(f"{n} {state}" for state in STATES if (n := counts[state]))


def cost_table(report: Report) -> Table:
    """Each group's steps, times and memory and, where there is a target, when its runs reached it."""
    names = [n for n in SPEEDS if n not in STEP_PARTS and any(n in s.speeds for s in report.summaries)]
    heads = ["group", "steps", "training time", "time/step", "overhead", "memory", *(HEADS[n] for n in names)]
    if report.target is not None:
        heads += [f"reached {report.metric.text(report.target)}", "after steps", "after time"]
    fastest = {
        s.group.label: min(
            (other.seconds_per_step for other in members if other.seconds_per_step), default=None
        )
        for members in experiments(report.summaries)
        for s in members
    }
    rows = [cost_row(summary, fastest[summary.group.label], names) for summary in report.summaries]
    return Table("Cost", heads, rows)


def cost_row(summary: Summary, fastest: float | None, names: Sequence[str]) -> list[str]:
    """The cells of a group in the table of costs.

    Args:
        summary: of the group.
        fastest: seconds per step of the fastest group of its experiment.
        names: of `trainer.report.records.SPEEDS`, those that are shown.
    """
    speed, peak, reached = summary.seconds_per_step, summary.memory_mib, summary.reached
    row = [
        summary.group.label,
        f"{summary.steps:.0f}" if summary.steps is not None else NONE,
        duration(summary.seconds) if summary.seconds is not None else NONE,
        duration(speed) if speed is not None else NONE,
        f"× {speed / fastest:.2f}" if speed and fastest else NONE,
        memory(peak) if peak is not None else NONE,
        *speed_cells(summary, names),
    ]
    if reached is None:
        return row
    return [
        *row,
        f"{reached.reached} of {reached.settled}",
        "not reached" if reached.steps is None else f"{reached.steps:.0f}",
        "not reached" if reached.seconds is None else duration(reached.seconds),
    ]


def parts_table(report: Report) -> Table:
    """The shares of each group's training time that the parts of its steps take."""
    names = ["data_wait", *STEP_PARTS]
    rows = [[summary.group.label, *speed_cells(summary, names)] for summary in report.summaries]
    return Table("Shares of the training time", ["group", *(HEADS[name] for name in names)], rows)


def step_memory_table(report: Report) -> Table:
    """What the memory of each group's steps is for, in MiB; on the first rank."""
    names = list(dict.fromkeys(name for summary in report.summaries for name in summary.step_memory))
    rows = [
        [s.group.label, *(f"{s.step_memory[name]:.2f}" if name in s.step_memory else NONE for name in names)]
        for s in report.summaries
    ]
    return Table("Memory of a step in MiB", ["group", *names], rows)


def speed_cells(summary: Summary, names: Sequence[str]) -> list[str]:
    """A group's numbers of `trainer.report.records.SPEEDS`, those of these names."""
    return [metric_of(name).text(summary.speeds[name]) if name in summary.speeds else NONE for name in names]


def sensitivity_table(sensitivity: Sensitivity) -> Table:
    """A row for each value of the option, a column for each curve, whose best value has a star."""
    metric, curves = sensitivity.metric, sensitivity.curves
    values = sorted({value for curve in curves for value in curve.finals})
    rows = [
        [config_text(value), *(result_cell(metric, curve, value) for curve in curves)] for value in values
    ]
    heads = [sensitivity.key, *(curve.label for curve in curves)]
    return Table(f"{metric.name} against {sensitivity.key}", heads, rows)


def result_cell(metric: Metric, curve: Curve, value: float) -> str:
    """A curve's mean at a value of the option, or why it has none."""
    if value not in curve.finals:
        return NONE
    if value in curve.means:
        return "★ " * (value == curve.best) + metric.text(curve.means[value])
    return "diverged" if curve.finals[value] else "pruned" if value in curve.pruned else "failed"


def comparison_tables(report: Report) -> list[Table]:
    """For each experiment, the difference of the baseline, or the best group, to each other one, with its test."""
    rows: dict[str, list[list[str]]] = {}
    for comparison in report.comparisons:
        cells = [NONE] * 3
        if (found := comparison.difference) and comparison.interval:
            p = NONE if comparison.p is None else p_value(comparison.p).lstrip("p =")
            cells = [difference(report.metric, comparison.interval), basis(found), p]
        row = [comparison.other, *cells, "yes" if comparison.claimed else "no"]
        rows.setdefault(comparison.first, []).append(row)
    several = len(experiments(report.summaries)) > 1
    others = "each other group of its task" if several else "each other group"
    heads = ["group", "difference", "test", "p", "claimed"]
    return [
        Table(f"{first} minus {others}: {report.metric.name}", heads, found) for first, found in rows.items()
    ]


def unfinished_table(report: Report) -> Table:
    """Each run that has not finished, with its last value and a remark."""
    rows = []
    for run in report.runs:
        if run.state != "finished":
            points = run.evaluations.get(report.metric.name)
            value = report.metric.text(points[-1].value) if points else NONE
            rows.append([str(run.path), run.state, str(run.step), value, remark(run)])
    return Table("Runs that have not finished", ["run", "state", "step", report.metric.name, "remark"], rows)
