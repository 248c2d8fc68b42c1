"""Published results beside those of runs: found by recipe, model and data, and by nothing else."""

import json
import re
from itertools import chain
from pathlib import Path

import pytest
import yaml

from tests.report.fake import write_run
from trainer.config.command_line import CONF
from trainer.report.__main__ import main
from trainer.report.published import published_tables
from trainer.rundir.files import OVERRIDES

ROOT = Path(__file__).parents[2]
RECIPE = ["experiment=cifar_cnn_adafisher", "model=resnet18_cifar"]


def write_seeds(
    folder: Path, finals: list[float], typed: list[str], data: str = "cifar10", **options
) -> None:
    for seed, final in enumerate(finals):
        named = {
            "data__name": data,
            "model__name": "resnet18_cifar",
            "optimizer__name": "adafisher",
            **options,
        }
        path = write_run(folder / f"run_{seed}", [0.1, final], seed=seed, **named)
        (path / OVERRIDES).write_text(yaml.safe_dump([*typed, f"seed={seed}"]))


def report(capsys: pytest.CaptureFixture[str], folder: Path) -> dict:
    assert main([str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_published_and_here_are_means_and_standard_deviations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_seeds(tmp_path, [0.95, 0.96, 0.97], [*RECIPE, "monitor.sinks=[jsonl]", "checkpoint.keep_last=1"])
    (found,) = report(capsys, tmp_path)["published"]
    assert found["published"] == {"mean": 0.9625, "deviation": 0.002}
    assert found["here"] == {"mean": pytest.approx(0.96), "deviation": pytest.approx(0.01), "seeds": 3}
    assert found["departures"] == []
    assert main([str(tmp_path)]) == 0
    shown = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert "test/accuracy 96.25% ± 0.20% 96.00% ± 1.00% 3" in shown
    assert "Note: Published: AdaFisher (arXiv 2405.16397v3), CIFAR-10" in shown


@pytest.mark.parametrize(
    ("typed", "options"),
    [
        ([*RECIPE, "quick=images"], {}),
        (RECIPE, {"data": "synthetic_images"}),
        (RECIPE, {"model__name": "cnn"}),
        (["experiment=my_own", "model=resnet18_cifar"], {}),
        (["model=resnet18_cifar"], {}),
    ],
)
def test_nothing_is_shown_beside_anything_else(
    typed: list[str], options: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_seeds(tmp_path, [0.95, 0.96], typed, **options)
    assert report(capsys, tmp_path)["published"] == []
    assert main([str(tmp_path)]) == 0
    assert "ublished" not in capsys.readouterr().out


def test_what_departs_from_the_recipe_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_seeds(tmp_path, [0.5, 0.6], [*RECIPE, "loop.max_epochs=3", "data.std=[0.2,0.2,0.2]"])
    found = report(capsys, tmp_path)
    assert found["published"][0]["departures"] == ["loop.max_epochs=3", "data.std=[0.2,0.2,0.2]"]
    assert (
        "adafisher departs from the published recipe by loop.max_epochs=3, data.std=[0.2,0.2,0.2]."
        in found["notes"]
    )


def test_a_pretrained_network_has_a_table_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resnet50 = {"model__name": "resnet50_cifar", "model__pretrained": True}
    write_seeds(tmp_path, [0.97], [RECIPE[0], "model=resnet50_cifar", "model.pretrained=true"], **resnet50)
    (found,) = report(capsys, tmp_path)["published"]
    assert found["published"] == {"mean": 0.9713, "deviation": 0.002}
    assert found["here"] == {"mean": 0.97, "deviation": None, "seeds": 1}


def test_a_group_of_several_recipes_has_no_published_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_seeds(tmp_path / "a", [0.95], RECIPE)
    write_seeds(tmp_path / "b", [0.95], ["experiment=cifar_cnn_adam", "model=resnet18_cifar"])
    assert report(capsys, tmp_path)["published"] == []


def test_tables_name_recipes_and_models_that_exist_and_have_a_cell_for_each() -> None:
    for table in published_tables():
        for recipe in table["recipes"]:
            assert (CONF / "experiment" / f"{recipe}.yaml").exists()
        for model, cells in table["results"].items():
            assert (CONF / "model" / f"{model}.yaml").exists()
            assert len(cells) == len(table["recipes"])


def test_the_page_on_reproducing_has_the_same_numbers() -> None:
    """Its rows are SGD / Adam(W) / AdaFisher(W) on CIFAR-10 and on CIFAR-100."""
    page = (ROOT / "docs" / "reproducing.md").read_text()
    rows = dict(
        re.findall(r"^\| `(\w+_cifar)` \| `cifar_\w+_\*` \| ([\d./ ]+ \| [\d./ ]+) \|", page, re.MULTILINE)
    )
    tables = [table for table in published_tables() if not table["where"].get("model.pretrained")]
    for model, row in rows.items():
        cells = [
            [each["results"][model][i] for i in (0, 1, -1)] for each in tables if model in each["results"]
        ]
        means = [cell[0] if isinstance(cell, list) else cell for cell in chain(*cells)]
        assert [float(n) for n in re.findall(r"[\d.]+", row)] == pytest.approx([100 * mean for mean in means])
    assert len(rows) == 8
