"""The resolved config in a run directory, from which the run can be started again."""

from pathlib import Path
from typing import Any

import yaml

from trainer.rundir.files import CONFIG, OVERRIDES, atomic_write_text


def freeze(path: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """Writes config.yaml, from which the run can be started again, and overrides.yaml, what the user typed.

    A run that is started from its frozen config has no overrides, and keeps those of its first start.

    Args:
        path: the run directory.
        config: resolved, plain mappings and lists.
        overrides: of the command line.
    """
    head = f"# Runs the same again, or continues from the last checkpoint: {again(path)}\n"
    frozen = {**config, "hydra": frozen_hydra(path)}
    atomic_write_text(path / CONFIG, head + yaml.safe_dump(frozen, sort_keys=False))
    if overrides or not (path / OVERRIDES).exists():
        atomic_write_text(path / OVERRIDES, yaml.safe_dump(overrides))


def again(path: Path) -> str:
    """The command that continues the run in a directory."""
    return f"python -m trainer --config-path {path} --config-name config"


def frozen_hydra(path: Path) -> dict[str, Any]:
    """The options of Hydra by which a frozen config trains in its own directory, and Hydra writes nothing there."""
    return {"run": {"dir": str(path)}, "output_subdir": None}
