"""The report for people: in the terminal and as a Markdown page."""

from rich.console import Console
from rich.text import Text

from trainer.cli.common import folding_table
from trainer.formatting import printable
from trainer.report.caveats import notes
from trainer.report.formatting import method, verdict
from trainer.report.summary import Report
from trainer.report.tables import tables


def show(report: Report, console: Console) -> None:
    """Prints the report in a terminal."""
    for table in tables(report):
        grid = folding_table(*map(printable, table.heads), title=printable(table.title))
        for row in table.rows:
            grid.add_row(*(Text(printable(cell)) for cell in row))
        console.print(grid)
    for line in verdicts(report):
        console.print(Text(printable(line)))
    for line in (method(report), *report.protocol):
        console.print(Text(printable(line), "dim"))
    for note in notes(report):
        console.print(Text(printable(f"Note: {note}"), "yellow"))


def markdown(report: Report, figures: list[str]) -> str:
    """The report as a Markdown page that shows these image files."""
    parts = ["# Report"]
    for table in tables(report):
        rows = [table.heads, ["---"] * len(table.heads), *table.rows]
        lines = [
            "| " + " | ".join(printable(cell).replace("|", "\\|") for cell in row) + " |" for row in rows
        ]
        parts += [f"## {printable(table.title)}", "\n".join(lines)]
    parts += [
        "## In words",
        "\n".join(f"* {printable(line)}" for line in [*verdicts(report), method(report), *report.protocol]),
    ]
    if found := notes(report):
        parts += ["## Notes", "\n".join(f"* {printable(note)}" for note in found)]
    parts += [f"![{name}]({name})" for name in figures]
    return "\n\n".join(parts) + "\n"


def verdicts(report: Report) -> list[str]:
    """A sentence for each comparison."""
    return [verdict(comparison, report.metric) for comparison in report.comparisons]
