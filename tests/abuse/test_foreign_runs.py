"""A run directory comes from somebody who wants to execute code, or to read the environment, where it is opened."""

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.abuse.runs import checkpoints, go, stopped
from trainer.analyze.__main__ import main as analyze
from trainer.checkpoint import manifest
from trainer.checkpoint.reading import MetadataUnpickler
from trainer.cli.train import main
from trainer.evaluate.__main__ import main as evaluate
from trainer.export.__main__ import main as export
from trainer.generate import main as generate
from trainer.predict import main as predict


class Command:
    """Executed when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def evil(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a module beside it that leaves a marker when it is imported."""
    (run / "evil_module.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
    monkeypatch.chdir(run)
    monkeypatch.syspath_prepend(str(run))
    return stopped(run)


def with_pickle(run: Path, name: str, marker: Path) -> None:
    """Puts a pickle into every checkpoint, with checksums that hold."""
    for checkpoint in checkpoints(run):
        (checkpoint / name).write_bytes(pickle.dumps(Command(marker)))
        files = [file for file in checkpoint.iterdir() if file.name != manifest.MANIFEST]
        manifest.write_manifest(checkpoint, 6, manifest.checksums(files))


@pytest.mark.parametrize("name", [".metadata", "values.json", "__0_0.distcp"])
def test_pickles_are_not_executed(
    name: str, evil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_pickle(evil, name, tmp_path / "marker")
    for command in (
        lambda: export([str(evil)]),
        lambda: analyze([str(evil)]),
        lambda: evaluate([str(evil)]),
        lambda: export([str(evil), "--to", "hf"]),
        lambda: go(tmp_path / "new", f"checkpoint.resume={evil}"),
        lambda: go(tmp_path / "new", f"checkpoint.weights={evil}"),
        lambda: main(["--config-path", str(evil)]),
    ):
        capsys.readouterr()
        assert command() == 1
        err = capsys.readouterr().err
        assert err.startswith("crashed: ")
        assert "cannot be read, though its checksums hold" in err
        assert err.count("\n") == 1
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "new").exists()


def test_the_metadata_may_name_nothing_else() -> None:
    for name in (
        b"os\nsystem",
        b"builtins\neval",
        b"torch\nload",
        b"torch.serialization\nload",
        b"pathlib\nos",
    ):
        with pytest.raises(pickle.UnpicklingError, match="which does not belong there"):
            MetadataUnpickler(io.BytesIO(b"c" + name + b"\n.")).load()


def rewrite(run: Path, **changes: Any) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))


READERS = {
    "analyze": lambda run: analyze([run]),
    "evaluate": lambda run: evaluate([run]),
    "predict": lambda run: predict([run, __file__]),
    "generate": lambda run: generate([run, "a"]),
    "export": lambda run: export([run, "--to", "torch-export"]),
}


@pytest.mark.parametrize("command", ["--config-path", "--cfg", "--multirun", *READERS])
def test_plugins_are_imported_only_if_they_are_named(
    command: str, evil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(evil, plugins=["evil_module"])
    capsys.readouterr()
    flags = {"--config-path": [], "--cfg": ["--cfg", "job"], "--multirun": ["--multirun", "seed=0,1"]}
    if command in READERS:
        assert READERS[command](str(evil)) == 2
        option = "--plugins evil_module"
    else:
        assert main(["--config-path", str(evil), *flags[command]]) == 2
        option = "plugins=[evil_module]"
    assert capsys.readouterr().err == (
        f"error: the run in {evil} needs plugins, whose code would be executed: if you trust them, add {option}\n"
    )
    assert not (tmp_path / "marker").exists()


def test_the_command_that_is_printed_names_them(evil: Path, tmp_path: Path) -> None:
    rewrite(evil, plugins=["evil_module"])
    assert main(["--config-path", str(evil), "--config-name", "config", "plugins=[evil_module]"]) == 0
    assert (tmp_path / "marker").exists()
    head = (evil / "config.yaml").read_text().splitlines()[0]
    assert head.endswith(f"--config-path {evil} --config-name config 'plugins=[evil_module]'")


def test_options_of_hydra_are_not_those_of_the_run(evil: Path, tmp_path: Path) -> None:
    """Which could name a callback for Hydra to call."""
    target = {"_target_": "evil_module.Callback"}
    rewrite(
        evil,
        hydra={"callbacks": {"x": target}, "launcher": dict(target), "run": {"dir": str(tmp_path / "there")}},
    )
    assert main(["--config-path", str(evil), "--cfg", "job"]) == 0
    assert main(["--config-path", str(evil)]) == 0
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "there").exists()


def test_the_environment_is_not_read(
    evil: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    text = (evil / "config.yaml").read_text()
    text = text.replace("name: digits_cnn_sgd", "name: ${oc.env:SECRET}")
    (evil / "config.yaml").write_text(text[: text.index("# checksum")])
    for command in (lambda: main(["--config-path", str(evil)]), lambda: analyze([str(evil)])):
        assert command() == 2
        out, err = capsys.readouterr()
        assert "it has an interpolation" in err
        assert "hunter2" not in out + err


def test_data_that_lead_out_of_the_checkpoint(
    evil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoints(evil)[0]
    with (newest / ".metadata").open("rb") as file:
        metadata = MetadataUnpickler(file).load()
    for info in metadata.storage_data.values():
        info.relative_path = "../../../secret"
    (newest / ".metadata").write_bytes(pickle.dumps(metadata))
    files = [file for file in newest.iterdir() if file.name != manifest.MANIFEST]
    manifest.write_manifest(newest, 6, manifest.checksums(files))
    capsys.readouterr()
    assert export([str(evil)]) == 1
    assert "its manifest does not name ../../../secret" in capsys.readouterr().err
    assert json.loads((newest / manifest.MANIFEST).read_text())["format"] == manifest.FORMAT
