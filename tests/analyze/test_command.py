"""The command line on runs as the trainer leaves them."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.analyze import __main__ as command
from trainer.checkpoint import storage
from trainer.cli.train import main as train
from trainer.config.command_line import CONF

NAMES = command.DEFAULT
SMALL = ["--batches", "2", "--points", "3"]


def trained(path: Path, *overrides: str) -> Path:
    given = ["loop.max_steps=6", "checkpoint.every_steps=2", "checkpoint.keep_last=3", "model.widths=[4,6]"]
    assert train([*given, "device=cpu", "monitor.sinks=[]", f"hydra.run.dir={path}", *overrides]) == 0
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy", symlinks=True))


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time."""
    monkeypatch.setattr(command, "write", lambda *args: [])


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_everything_on_a_run(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(copied)
    assert command.main([str(copied), *SMALL]) == 0
    pictures = {f"{name}_step_00000006.png" for name in NAMES}
    added = {path.relative_to(copied) for path in files(copied).keys() - before.keys()}
    assert {path.name for path in added if path.suffix == ".png"} == pictures
    assert {path.parent.name for path in added} == {"analysis"}
    assert {path: files(copied)[path] for path in before} == before
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)

    events = EventAccumulator(str(copied / "analysis")).Reload()
    assert set(events.Tags()["images"]) == {f"analysis/{name}" for name in NAMES}
    assert events.Images("analysis/factors")[0].step == 6


def test_one_figure_elsewhere(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--what",
        "spectrum",
        "--steps",
        "all",
        "--layers",
        "features.0",
        "--out",
        str(tmp_path / "a" / "b"),
    ]
    assert command.main([str(run / "checkpoints" / "best"), *options, "--json"]) == 0
    [figure] = json.loads(capsys.readouterr().out)["figures"]
    best = (run / "checkpoints" / "best").resolve()
    assert Path(figure) == tmp_path / "a" / "b" / f"spectrum_{best.name}.png"
    assert Path(figure).stat().st_size > 1000
    assert not (run / "analysis").exists()


@pytest.mark.usefixtures("no_figures")
def test_json_of_a_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = run / "checkpoints" / "step_00000004"
    assert command.main([str(place), *SMALL, "--json", "--layers", "features.*"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"checkpoint", "step", "figures", *NAMES}
    assert (found["checkpoint"], found["step"]) == (str(place), 4)

    sizes = {(row["layer"], row["factor"]): row["size"] for row in found["factors"]}
    convolutions = ("features.0", 9, 4), ("features.4", 4 * 9, 6)  # without a bias
    norms = ("features.1", 4, 4), ("features.5", 6, 6)
    assert sizes == {
        (name, kind): size for name, A, G in (*convolutions, *norms) for kind, size in (("A", A), ("G", G))
    }
    for factor, discs, spectrum in zip(found["factors"], found["gershgorin"], found["spectrum"], strict=True):
        trace = factor["mean_diagonal"] * factor["size"]
        assert sum(discs["eigenvalues"]) == pytest.approx(trace, rel=1e-5)
        share = factor["diagonal_energy"]
        ratio = share / (1 - share) * (factor["size"] - 1)
        assert 10 ** (spectrum["signal_to_noise_db"] / 10) == pytest.approx(ratio, rel=1e-4)
    assert {tuple(row["steps"]) for row in found["preconditioner"]} == {(2, 4, 6)}
    random, trajectory = found["landscape"]
    assert random["losses"][1][1] == pytest.approx(random["loss"])
    assert len(trajectory["path"]) == 3
    assert trajectory["path"][1] == pytest.approx([0, 0], abs=1e-6)
    assert trajectory["explained"] == pytest.approx(1)


@pytest.mark.usefixtures("no_figures")
def test_norms_at_several_steps(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--what", "factors,spectrum", "--layers", "features.1", "--steps", "4,6", "--sigma", "0"]
    assert command.main([str(run), *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["factor"], row["step"]) for row in found["factors"]] == [
        (k, s) for s in (4, 6) for k in "AG"
    ]
    for row in found["spectrum"]:
        more = 10 * math.log10(2 * 4 / 3)  # by the definitions, without noise
        assert row["published_signal_to_noise_db"] == pytest.approx(row["signal_to_noise_db"] + more)


@pytest.mark.usefixtures("no_figures")
def test_the_same_numbers_twice(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for _ in range(2):
        assert command.main([str(run), *SMALL, "--json"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = ["data=synthetic_tokens", "data.train_samples=64", "data.batch_size=4", "data.context_length=8"]
    path = tmp_path_factory.mktemp("language") / "run"
    model = ["model=gpt", "model.layers=1", "model.width=16", "loop.accumulate=2", "optimizer=sgd"]
    overrides = [
        *given,
        *model,
        "loop.max_steps=2",
        "device=cpu",
        "monitor.sinks=[]",
        "checkpoint.keep_best=false",
    ]
    assert train([f"hydra.run.dir={path}", *overrides]) == 0
    return path


@pytest.mark.usefixtures("no_figures")
def test_what_does_not_fit_is_left_out_and_said(language: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(language), *SMALL, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == (
        "skipped preconditioner: --what preconditioner needs runs of AdaFisher, Adam or AdamW: "
        "optimizer=sgd is none\n"
    )
    found = json.loads(out)
    assert "preconditioner" not in found
    assert [plane["plane"] for plane in found["landscape"]] == ["random"]
    assert {row["layer"] for row in found["factors"]} == {"blocks.0.attention.qkv", "blocks.0.mlp.0", "head"}


@pytest.mark.usefixtures("no_figures")
def test_a_run_of_several_ranks_on_one(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frozen = OmegaConf.load(copied / "config.yaml")
    frozen.parallel, frozen.device = OmegaConf.load(CONF / "parallel" / "fsdp.yaml"), "cuda"
    frozen.loop.compile = True
    OmegaConf.save(frozen, copied / "config.yaml")
    assert command.main([str(copied), *SMALL, "--what", "spectrum"]) == 0, capsys.readouterr().err


@pytest.fixture
def without_checkpoints(copied: Path) -> Path:
    shutil.rmtree(copied / "checkpoints")
    return copied


@pytest.fixture
def damaged(copied: Path) -> Path:
    for file in (copied / "checkpoints" / "step_00000006").glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:-10])
    return copied


@pytest.fixture
def of_another_model(language: Path, copied: Path) -> Path:
    [theirs] = storage.list_checkpoints(language / "checkpoints")
    return Path(shutil.copytree(theirs, copied / "checkpoints" / "step_00000009"))


@pytest.fixture
def outside(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run / "checkpoints" / "step_00000006", tmp_path / "somewhere" / "else"))


def mistakes() -> Iterator[tuple[str, list[str], str]]:
    yield "run", ["--what", "factor"], "unknown --what 'factor'; did you mean factors? (known: factors, "
    yield (
        "run",
        ["--layers", "feature.*"],
        "--layers 'feature.*' matches no Linear, Conv2d or norm layer; did you mean features",
    )
    yield "run", ["--what", "factors", "--steps", "3"], "{} has no checkpoint of step 3 (known: 2, 4, 6"
    yield "run", ["--steps", "2,x"], "argument --steps: '2,x' is neither 'all' nor steps such as 100,200"
    yield "run", ["--points", "1"], "argument --points: '1' is not an integer of at least 2"
    yield "run", ["--what", "factors", "--out", __file__], f"{__file__} cannot be written to: "
    yield (
        "language",
        ["--what", "preconditioner"],
        "--what preconditioner needs runs of AdaFisher, Adam or AdamW: optimizer=sgd is none",
    )
    yield "tmp_path", [], "{} has no checkpoints: give a run directory"
    yield "without_checkpoints", [], "{} has no checkpoints"
    yield "damaged", [], "{}/checkpoints/step_00000006 is damaged: "
    yield "of_another_model", [], "the checkpoint is of another model: "
    yield "outside", [], "{} does not lie in a run directory: "


@pytest.mark.parametrize(("which", "options", "message"), list(mistakes()))
def test_mistakes_are_one_line(
    which: str,
    options: list[str],
    message: str,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = request.getfixturevalue(which)
    before = files(path)
    capsys.readouterr()
    assert command.main([str(path), *options]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {message.format(path)}")
    assert (out, err.count("\n")) == ("", 1)
    assert files(path) == before


def test_a_path_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tmp_path / "none")]) == 2
    assert "does not exist: give a run directory" in capsys.readouterr().err


def test_without_matplotlib(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert command.main([str(run)]) == 2
    assert capsys.readouterr().err == (
        "error: trainer.analyze needs the package matplotlib: pip install '.[report]'\n"
    )
