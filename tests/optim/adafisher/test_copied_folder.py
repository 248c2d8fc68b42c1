"""The folder works wherever it is copied, without the rest of the project."""

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "trainer/optim/adafisher"
PROGRAM = """
import sys
sys.modules["trainer"] = None  # importing it fails
import torch
from adafisher import AdaFisher
from adafisher.reference import AdaFisherReference

for optimizer in AdaFisher, AdaFisherReference:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    before = model.weight.detach().clone()
    rule = optimizer(model)
    model(torch.ones(4, 3)).square().mean().backward()
    rule.step()
    assert not torch.equal(before, model.weight)
assert not [name for name in sys.modules if name.startswith("trainer.")]
print("trained")
"""


def test_the_copied_folder_trains(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "adafisher", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": ""}, capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("trained\n", 0), result.stderr
