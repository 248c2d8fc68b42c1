"""Planes and ways against weights that are known, and the command on two runs of one model."""

import json
from pathlib import Path

import pytest
import torch

from tests.analyze.test_command import files, trained
from trainer.analyze import __main__ as command
from trainer.analyze.loaded_run import DoesNotFit
from trainer.analyze.trajectories import Way, entries, plane_of_weights, principal_plane
from trainer.checkpoint import storage
from trainer.checkpoint.weights import weights_of
from trainer.errors import ConfigError

WEIGHTS = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3.0, 4.0, 5.0])}


@pytest.mark.parametrize(("axes", "x", "y"), [("a", 1, 2), ("b:2,a:0", 5, 1)])
def test_the_plane_of_two_weights_has_them_for_coordinates(axes: str, x: float, y: float) -> None:
    project = plane_of_weights(WEIGHTS, axes)
    everything = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    assert project(everything).tolist() == [[x, y]]
    torch.testing.assert_close(project.centre + project(everything)[0] @ project.directions, everything[0])


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("c", "--axes: the model has no parameter 'c'"),
        ("b", "--axes b is not two weights but 3: name them by their places, such as b:0,b:1"),
        ("a:0", "is not two weights but 1"),
        ("a:0,a:0", "is not two weights but 1"),
        ("a:2,b:0", "--axes a:2: '2' is none of the 2 places, 0 to 1"),
        ("a:x,b:0", "--axes a:x: 'x' is none of the 2 places"),
    ],
)
def test_axes_that_are_not_two_weights(axes: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        entries(axes, WEIGHTS)


def test_the_principal_plane_is_the_nearest_to_all_checkpoints() -> None:
    """By the singular values: the squared distances that it leaves are those of the third and further ones."""
    ways = [Way(name, [1, 2, 3, 4], torch.randn(4, 9)) for name in "ab"]
    weights = torch.cat([way.weights for way in ways])
    project = principal_plane(ways)
    left = weights - project.centre - project(weights) @ project.directions
    wanted = torch.linalg.svdvals(weights - weights.mean(0))[2:].square().sum()
    torch.testing.assert_close(left.square().sum(), wanted)


def test_one_checkpoint_has_no_plane() -> None:
    with pytest.raises(DoesNotFit, match="span no plane"):
        principal_plane([Way("a", [1], torch.zeros(1, 9))])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("toy")
    toy = ["experiment=iris_mlp", "model.widths=[1]"]
    return [trained(folder / name, *toy, f"optimizer={name}") for name in ("adam", "sgd")]


def test_two_runs_over_one_plane(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(runs[0].parent)
    axes = ["--axes", "1.weight", "--points", "3", "--batches", "2", "--out", str(tmp_path)]
    assert command.main([*map(str, runs), *axes, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"] == [str(tmp_path / "trajectories_step_00000006.png")]
    assert Path(found["figures"][0]).stat().st_size > 1000
    for run, row in zip(runs, found["trajectories"], strict=True):
        places = storage.list_checkpoints(run / "checkpoints")[::-1]
        weights = [weights_of(place, ema=False)["1.weight"].flatten().tolist() for place in places]
        assert (row["run"], row["steps"], row["path"]) == (run.name, [2, 4, 6], weights)
    first, second = found["trajectories"]
    assert first["loss_at_last"] == pytest.approx(first["loss_of_the_plane_there"])
    assert second["loss_at_last"] != pytest.approx(second["loss_of_the_plane_there"])
    assert files(runs[0].parent) == before


def test_runs_that_do_not_belong_together(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wider = trained(tmp_path / "wider", "experiment=iris_mlp", "model.widths=[2]")
    capsys.readouterr()
    assert command.main([str(runs[0]), str(wider)]) == 2
    assert f"the model of {wider} has other weights than that of {runs[0]}" in capsys.readouterr().err
    assert command.main([*map(str, runs), "--what", "factors"]) == 2
    assert capsys.readouterr().err == "error: --what factors is of one run: 2 are given\n"
