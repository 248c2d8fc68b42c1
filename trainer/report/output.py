"""A report as files in a folder."""

from importlib.util import find_spec
from pathlib import Path

from trainer.errors import ConfigError
from trainer.report.render import markdown
from trainer.report.serialize import csv_text
from trainer.report.summary import Report


def write(report: Report, folder: Path) -> None:
    """Writes report.md, report.csv and, where matplotlib is installed, the plots.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    figures: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if find_spec("matplotlib"):
            from trainer.report.plots import plot_all  # takes a second

            figures = plot_all(report, folder)
        (folder / "report.md").write_text(markdown(report, figures))
        (folder / "report.csv").write_text(csv_text(report), errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from None
