"""The resolved config in a run directory, of which the run can be started again."""

from pathlib import Path
from typing import Any

import yaml

from trainer.rundir.files import CONFIG, OVERRIDES, atomic_write_text


def freeze(path: Path, config: dict[str, Any], overrides: list[str]) -> None:
    """Writes a resolved config, of which the run in this directory can be started, and what the user typed.

    A run that is started from its frozen config has no overrides, and keeps those of its first start.
    """
    head = f"# The same run again, or on from its last checkpoint: {again(path)}\n"
    frozen = {**config, "hydra": frozen_hydra(path)}
    atomic_write_text(path / CONFIG, head + yaml.safe_dump(frozen, sort_keys=False))
    if overrides or not (path / OVERRIDES).exists():
        atomic_write_text(path / OVERRIDES, yaml.safe_dump(overrides))


def again(path: Path) -> str:
    """The command that goes on with the run in a directory."""
    return f"python -m trainer --config-path {path} --config-name config"


def frozen_hydra(path: Path) -> dict[str, Any]:
    """What keeps Hydra from adding anything of its own to a frozen config."""
    return {"run": {"dir": str(path)}, "output_subdir": None}
