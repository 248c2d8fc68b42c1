"""Predictions as files: a table as CSV or Parquet, the confusion matrix as a picture."""

import csv
import io
from pathlib import Path

from trainer.errors import ConfigError, UserError, one_line
from trainer.evaluate.predictions import Predictions
from trainer.rundir.files import atomic_path, atomic_write_text

FORMATS = (".csv", ".parquet")
ANNOTATED = 20
"""Most classes whose numbers are written into the picture."""


def check_target(option: str, path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuses the name of a file that cannot be written, before anything is computed.

    Raises:
        ConfigError: its folder does not exist, or it ends in nothing that is known.
    """
    if path.suffix not in suffixes:
        raise ConfigError(f"{option} {path} is wrong: the name must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir() or path.is_dir():
        what = "it is a folder" if path.is_dir() else f"the folder {path.parent} does not exist"
        raise ConfigError(f"{option} {path}: {what}: give the name of a file")


def write_predictions(found: Predictions, path: Path) -> None:
    """Writes a row for each sample, in the format that the file's name says.

    Raises:
        UserError: the file cannot be written.
    """
    rows = found.rows()
    try:
        if path.suffix == ".csv":
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            atomic_write_text(path, text.getvalue())
        else:
            import pyarrow
            from pyarrow import parquet

            with atomic_path(path) as part:
                parquet.write_table(pyarrow.Table.from_pylist(rows), part)
    except OSError as error:
        raise UserError(f"--predictions {path} cannot be written: {one_line(error)}") from None


def draw_confusion(found: Predictions, path: Path) -> None:
    """Draws how many samples of each class (rows) are taken for which (columns), coloured by the share of the row.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # takes a second

    table = found.confusion
    shares = table / table.sum(1, keepdim=True).clamp(min=1)
    size = len(found.classes)
    side = min(20.0, 3 + 0.45 * size)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    if size <= ANNOTATED:
        axes.set_xticks(range(size), found.classes, rotation=90)
        axes.set_yticks(range(size), found.classes)
        for row, column in table.nonzero().tolist():
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(int(table[row, column])), ha="center", va="center", color=colour)
    axes.set(xlabel="predicted", ylabel="true", title=f"{found.split}: {len(found.targets)} samples")
    try:
        with atomic_path(path) as part:
            figure.savefig(part, dpi=110, format="png")
    except OSError as error:
        raise UserError(f"--confusion {path} cannot be written: {one_line(error)}") from None
