"""``--help`` is answered at once, and as Hydra would."""

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from trainer.cli import help as module
from trainer.cli.help import quick_help
from trainer.cli.train import main


def test_the_quick_help_is_hydras(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert quick_help(["--help"]) == capsys.readouterr().out.removesuffix("\n")


def test_no_torch_is_imported_for_it() -> None:
    code = "import runpy, sys; sys.argv = ['trainer', '--help']; runpy.run_module('trainer', run_name='__main__')"
    code += "; assert not {'torch', 'hydra', 'numpy'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("python -m trainer [GROUP=NAME ...]")


@pytest.mark.parametrize(
    "argv", [[], ["--help", "plugins=[mine]"], ["--config-dir", "x", "--help"], ["model=cnn"]]
)
def test_anything_else_is_hydras(argv: list[str]) -> None:
    assert quick_help(argv) is None


def test_installed_plugins_are_hydras(monkeypatch: pytest.MonkeyPatch) -> None:
    announced = EntryPoints([EntryPoint("mine", "mine", "trainer.models")])
    monkeypatch.setattr(module, "entry_points", lambda: announced)
    assert quick_help(["--help"]) is None
