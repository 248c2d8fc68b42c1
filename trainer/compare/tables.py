"""``table=NAME``: the words of a command line that makes a published table."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from trainer.errors import ConfigError, nearest

FILE = Path(__file__).with_suffix(".yaml")
TABLE = "table"


def expanded(argv: Sequence[str]) -> list[str]:
    """A command line with the words of its table in place of ``table=NAME``; words that are typed have precedence.

    Raises:
        ConfigError: there is no such table, or several are named.
    """
    named = [word for word in argv if word.startswith(f"{TABLE}=")]
    if not named:
        return list(argv)
    if len(named) > 1:
        raise ConfigError(f"{TABLE} is given twice")
    tables = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    name = named[0].partition("=")[2]
    if name not in tables:
        raise ConfigError(f"unknown {named[0]}{nearest(name, tables)}")
    typed = {word.partition("=")[0] for word in argv}
    own = [word for word in tables[name] if word.partition("=")[0] not in typed]
    return [*own, *(word for word in argv if word not in named)]
