"""Two swept numbers as a heat map: the numbers behind it, and when there is one."""

import math
from pathlib import Path

import pytest

from tests.report.fake import write_run
from trainer.report.__main__ import main
from trainer.report.heat_map import HeatMap, heat_map
from trainer.report.plots import plot_heat_map
from trainer.report.read_runs import read_runs
from trainer.report.summary import make_report

PNG = b"\x89PNG\r\n\x1a\n"


def write_grid(folder: Path, optimizer: str = "adamw") -> None:
    """Accuracies of 100 lr + size / 1000 + seed / 100, but for the largest lr, which diverges at size 32."""
    for lr in (0.001, 0.002, 0.004):
        for size in (16, 32):
            for seed in (0, 1):
                value = (
                    math.nan if (lr, size) == (0.004, 32) and seed else 100 * lr + size / 1000 + seed / 100
                )
                options = {"optimizer": {"name": optimizer, "lr": lr}, "data__batch_size": size, "seed": seed}
                write_run(folder / f"{optimizer}_{lr}_{size}_{seed}", [0.1, value], **options)


def map_of(folder: Path) -> HeatMap | None:
    report = make_report(read_runs([folder]), by=None, metric=None, target=None)
    return heat_map(report.runs, report.keys, report.metric)


def test_a_cell_is_the_mean_over_seeds_and_a_diverged_one_has_none(tmp_path: Path) -> None:
    write_grid(tmp_path)
    found = map_of(tmp_path)
    assert found is not None
    (grid,) = found.grids
    assert {found.rows: found.row_values, found.columns: found.column_values} == {
        "optimizer.lr": [0.001, 0.002, 0.004],
        "data.batch_size": [16, 32],
    }
    order = (lambda lr, size: (lr, size)) if found.rows == "optimizer.lr" else (lambda lr, size: (size, lr))
    assert grid.means == {
        order(lr, size): pytest.approx(100 * lr + size / 1000 + 0.005)
        for lr in (0.001, 0.002, 0.004)
        for size in (16, 32)
        if (lr, size) != (0.004, 32)
    }
    assert grid.lost == [order(0.004, 32)]


def test_failed_cells_are_lost_and_running_ones_open(tmp_path: Path) -> None:
    write_grid(tmp_path)
    for state, lr in (("failed", 0.008), ("running", 0.016)):
        write_run(
            tmp_path / state, [], optimizer={"name": "adamw", "lr": lr}, data__batch_size=16, state=state
        )
    found = map_of(tmp_path)
    assert found is not None
    cells = {frozenset(cell) for cell in found.grids[0].lost}
    assert cells == {frozenset((0.004, 32)), frozenset((0.008, 16))}
    assert 0.016 not in found.row_values + found.column_values


def test_each_optimizer_has_a_panel_in_the_same_colours(tmp_path: Path) -> None:
    write_grid(tmp_path, "adamw")
    write_grid(tmp_path, "sgd")
    found = map_of(tmp_path)
    assert found is not None
    panels = [axes for axes in plot_heat_map(found).axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["adamw", "sgd"]
    assert len({axes.images[0].get_clim() for axes in panels}) == 1
    for axes in panels:
        texts = [text.get_text() for text in axes.texts]
        assert texts.count("×") == 1
        assert [text for text in texts if text.startswith("★")] == ["★ 42.10%"]
        shown = axes.images[0].get_array()
        assert shown.shape == (len(found.row_values), len(found.column_values))
        assert shown.max() == pytest.approx(0.421)
        assert shown.mask.sum() == 1


@pytest.mark.parametrize(
    "swept", [("optimizer__lr",), ("optimizer__lr", "data__batch_size", "loop__max_epochs")]
)
def test_one_or_three_numbers_make_none(swept: tuple[str, ...], tmp_path: Path) -> None:
    for number in range(1, 4):
        write_run(tmp_path / str(number), [0.5], **dict.fromkeys(swept, number))
    assert map_of(tmp_path) is None


def test_the_picture_is_in_the_folder_and_on_the_page(tmp_path: Path) -> None:
    write_grid(tmp_path / "runs")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    (picture,) = (tmp_path / "out").glob("test_accuracy_over_*.png")
    assert picture.read_bytes().startswith(PNG)
    assert f"]({picture.name})" in (tmp_path / "out" / "report.md").read_text()
