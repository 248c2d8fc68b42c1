"""``python -m trainer --help`` without Hydra and torch, whose imports take seconds."""

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import yaml

from trainer.rundir.provenance import CODE

CONF = CODE / "conf"


def quick_help(argv: Sequence[str]) -> str | None:
    """The text that Hydra would print for ``--help``, from the files in conf/.

    Args:
        argv: the command line.

    Returns:
        None if it asks for more than help, or if an installed package may add components: Hydra must answer then.
    """
    announced = any(group.startswith("trainer.") for group in entry_points().groups)
    if list(argv) not in (["--help"], ["-h"]) or announced:
        return None
    config = yaml.load((CONF / "config.yaml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    template: str = config["hydra"]["help"]["template"]
    return template.replace("$APP_CONFIG_GROUPS", groups())


def groups() -> str:
    """A line for each group of components, with their names."""
    folders = sorted(path for path in CONF.rglob("*") if path.is_dir())
    return "".join(
        f"{folder.relative_to(CONF).as_posix()}: {', '.join(names(folder))}\n" for folder in folders
    )


def names(folder: Path) -> list[str]:
    """The choices of a group: its files."""
    return sorted(path.stem for path in folder.glob("*.yaml"))
