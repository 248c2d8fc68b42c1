"""The record of a comparison in its folder, by which the same command resumes it."""

import shlex
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from trainer.compare.arguments import Command, Contender
from trainer.config.compose import resolve
from trainer.errors import DataError, UserError
from trainer.options import to_dict
from trainer.rundir.files import FORMAT, atomic_write_text, check_format

RECORD = "comparison.yaml"
"""The command and every contender's config, as they were when the comparison began."""


def write_record(command: Command, folder: Path) -> None:
    """Makes the folder of a new comparison, with its record.

    Raises:
        UserError: it cannot be made.
    """
    contenders = [
        {"label": c.label, "names": sorted(c.names), "overrides": c.overrides, "config": to_dict(c.config)}
        for c in command.contenders
    ]
    record = {"format": FORMAT, "command": command.words, "contenders": contenders}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(folder / RECORD, yaml.safe_dump(record, sort_keys=False))
    except OSError as error:
        raise UserError(f"compare.dir={folder} cannot be made: {error.strerror}") from None


def read_record(command: Command, folder: Path) -> list[Contender] | None:
    """Reads the contenders as they were when the comparison in this folder began; None if there is none.

    Raises:
        UserError: the folder belongs to another comparison.
        DataError: its record cannot be read.
    """
    try:
        record = yaml.safe_load((folder / RECORD).read_text())
        words = record["command"]
        check_format(record, folder / RECORD)
        contenders = [
            Contender(
                c["label"], frozenset(c["names"]), c["overrides"], resolve(OmegaConf.create(c["config"]))
            )
            for c in record["contenders"]
        ]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        raise DataError(f"{folder / RECORD} cannot be read: choose another compare.dir") from None
    if words != command.words:
        raise UserError(
            f"compare.dir={folder} holds another comparison, which is resumed by: "
            f"python -m trainer.compare {shlex.join([*words, f'compare.dir={folder}'])}"
        )
    return contenders
