"""Jobs import plugins, and the trainer, as they were when they were submitted, whatever was edited since."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import submit
from launch.cli import main
from launch.run_states import run_states
from launch.sweep_dir import read_sweep
from trainer.registry import import_plugin

pytestmark = pytest.mark.slow

PLUGIN = """
import json, os, sys
import trainer
from colours import version

def note(place):
    with open(os.environ["NOTES"], "a") as file:
        print(json.dumps([place, version.VERSION, trainer.__file__]), file=file)

note("imported")
"""
LIVE_TRAINER = "raise SystemExit('the trainer of the working directory was imported')\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package in a git repository of its own, which is the working directory."""
    folder = tmp_path / "work" / "colours"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "plugin.py").write_text(PLUGIN)
    (folder / "version.py").write_text("VERSION = 1\n")
    subprocess.run(["git", "init", "-q"], cwd=folder.parent, check=True)
    monkeypatch.chdir(folder.parent)
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setenv("NOTES", str(tmp_path / "unused"))
    import_plugin("colours.plugin")
    yield folder
    for name in ("colours", "colours.plugin", "colours.version"):
        del sys.modules[name]


@pytest.mark.parametrize(
    "words",
    [["loop.max_steps=1"], ["compare", "optimizer=sgd", "seed=0", "loop.max_steps=1"]],
    ids=["runs", "compare"],
)
def test_a_plugin_that_is_edited_after_submission(
    words: list[str], package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, notes = tmp_path / "sweep", tmp_path / "notes"
    options = ["launch=local", "launch.gpus_per_node=0", "device=cpu", "plugins=[colours.plugin]"]
    options += ["model.widths=[4]", "monitor.sinks=[jsonl]", f"launch.dir={sweep}"]
    with monkeypatch.context() as submitted_only:
        submitted_only.setattr(submit.local_executor, "execute", lambda *_: 0)
        assert main([*words, *options]) == 0
    (package / "version.py").write_text("VERSION = 2\n")
    (package.parent / "trainer").mkdir()
    (package.parent / "trainer" / "__init__.py").write_text(LIVE_TRAINER)
    monkeypatch.setenv("NOTES", str(notes))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert main(["rerun", str(sweep)]) == 0
    [state] = run_states(read_sweep(sweep))[0]
    assert state.state == "finished"
    found = [json.loads(line) for line in notes.read_text().splitlines()]
    assert {version for _, version, _ in found} == {1}
    assert {os.path.dirname(os.path.dirname(file)) for *_, file in found} == {str(sweep / "code")}
