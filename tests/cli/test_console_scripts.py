"""The installed commands, and completion of their options by a real bash."""

import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
SCRIPTS = [entry for entry in entry_points(group="console_scripts") if entry.name.startswith("adafisher-")]

pytestmark = pytest.mark.skipif(
    not (BIN / "adafisher-train").exists(), reason="the package is not installed: pip install -e ."
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_each_command_can_be_called(script) -> None:  # type: ignore[no-untyped-def]
    assert callable(script.load())


def test_all_commands_are_installed() -> None:
    names = {script.name.removeprefix("adafisher-") for script in SCRIPTS}
    assert names >= {
        "train",
        "report",
        "compare",
        "analyze",
        "evaluate",
        "predict",
        "generate",
        "export",
        "launch",
    }


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_options(tmp_path: Path) -> None:
    script = f"""
        PATH={BIN}:$PATH
        eval "$(adafisher-train -sc install=bash)"
        complete -p adafisher-train > registered
        COMP_LINE="adafisher-train optimizer=adafisher optimizer.da"
        COMP_WORDS=($COMP_LINE) COMP_CWORD=2 COMP_POINT=${{#COMP_LINE}}
        hydra_bash_completion
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "hydra_bash_completion adafisher-train" in (tmp_path / "registered").read_text()
    assert done.stdout.split() == ["optimizer.damping="], done.stderr
