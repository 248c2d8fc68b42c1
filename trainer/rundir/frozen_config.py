"""The resolved config in a run directory: written so that it reads as it was, and read without trust in its author."""

import os
import re
import shlex
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.errors import DataError, one_line
from trainer.rundir.files import CONFIG, OVERRIDES, atomic_write_text

PLAIN = re.compile(r"[A-Za-z_/][\w/.+-]*", re.ASCII)
"""Text that needs no quotes, unless YAML takes it for something else, as it does ``yes``."""

INTERPOLATION = re.compile(r"(\\*)\$\{")
"""After an odd number of backslashes it is text."""

CHECKSUM = re.compile(r"# checksum: ([0-9a-f]{8})\n?(.*)\Z", re.DOTALL)
"""The last line of a frozen config: the CRC-32 of all before it."""


class Dumper(yaml.SafeDumper):
    """Writes YAML that OmegaConf reads as it was: text that looks like a number or an interpolation stays text."""

    def ignore_aliases(self, _: Any) -> bool:
        """Writes what occurs twice twice."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if PLAIN.fullmatch(text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", escaped(text), style)


Dumper.add_representer(str, _represent_text)


def freeze(path: Path, config: Mapping[str, Any], overrides: list[str]) -> None:
    """Writes config.yaml, from which the run can be started again, and overrides.yaml, what the user typed.

    A run that is started from its frozen config has no overrides, and keeps those of its first start.

    Args:
        path: the run directory.
        config: resolved, plain mappings and lists.
        overrides: of the command line.
    """
    head = f"# Runs the same again, or continues from the last checkpoint: {again(path, config.get('plugins'))}\n"
    text = head + yaml.dump(dict(config), Dumper=Dumper, sort_keys=False, width=float("inf"))
    atomic_write_text(path / CONFIG, f"{text}# checksum: {zlib.crc32(text.encode()):08x}\n")
    if overrides or not (path / OVERRIDES).exists():
        atomic_write_text(path / OVERRIDES, yaml.safe_dump(overrides))


def check_checksum(text: str) -> None:
    """Checks the text of a frozen config; one without a checksum, as an editor may leave it, passes.

    Raises:
        ValueError: it has changed since its checksum was written.
    """
    found = CHECKSUM.search(text)
    if found and (found[2] or f"{zlib.crc32(text[: found.start()].encode()):08x}" != found[1]):
        raise ValueError(
            "it is not what the run wrote: restore it, or remove its checksum if the change is meant"
        )


def read_frozen(file: Path) -> dict[str, Any]:
    """The values in a config that `freeze` has written; nothing in it is resolved or executed.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    try:
        text = file.read_text(encoding="utf-8")
        check_checksum(text)
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError("it has an alias, which no frozen config has")
        values = OmegaConf.to_container(OmegaConf.create(text))
        if not isinstance(values, dict) or not values:
            raise ValueError("it is not the config of a run")
        return _unescaped({str(key): value for key, value in values.items() if key != "hydra"})
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise DataError(f"{file} cannot be read: {one_line(error)[:200]}") from None


def escaped(value: Any) -> Any:
    """A value in which OmegaConf finds no interpolation, and which it resolves to what it was."""
    if isinstance(value, Mapping):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [escaped(item) for item in value]
    if isinstance(value, str):
        return INTERPOLATION.sub(lambda found: rf"{found[1]}{found[1]}\${{", value)
    return value


def _unescaped(value: Any) -> Any:
    """What `escaped` was given.

    Raises:
        ValueError: there is an interpolation, which no frozen config has.
    """
    if isinstance(value, dict):
        return {key: _unescaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unescaped(item) for item in value]
    if isinstance(value, str):
        return INTERPOLATION.sub(_unescaped_match, value)
    return value


def _unescaped_match(found: re.Match[str]) -> str:
    if len(found[1]) % 2 == 0:
        raise ValueError("it has an interpolation, ${...}, which no frozen config has")
    return "\\" * (len(found[1]) // 2) + "${"


# Going on ------------------------------------------------------------------------------------------------------------


def arguments(path: Path, plugins: Sequence[str] | None = ()) -> list[str]:
    """The arguments of ``python -m trainer`` that go on with the run in a directory.

    Args:
        path: the run directory.
        plugins: those of its config: only what the command names is imported.
    """
    named = [f"plugins=[{','.join(plugins)}]"] if plugins else []
    return ["--config-path", str(path), "--config-name", "config", *named]


def plugins_of(path: Path) -> list[str]:
    """The plugins that the frozen config in a directory names; none if it cannot be read."""
    try:
        return [str(module) for module in read_frozen(path / CONFIG).get("plugins") or ()]
    except (DataError, TypeError):
        return []


def again(path: Path, plugins: Sequence[str] | None = ()) -> str:
    """The command that goes on with the run in a directory, in one line that a shell can read."""
    return f"python -m trainer {' '.join(map(quote, arguments(path, plugins)))}"


def quote(text: str) -> str:
    """A word for the shell, in one line whatever it contains."""
    if text.isprintable():
        return shlex.quote(text)
    letters = (
        re.sub(r"(['\\])", r"\\\1", letter)
        if letter.isprintable()
        else "".join(rf"\x{byte:02x}" for byte in os.fsencode(letter))
        for letter in text
    )
    return f"$'{''.join(letters)}'"
