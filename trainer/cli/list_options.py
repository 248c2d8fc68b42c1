"""``python -m trainer options [GROUP[=NAME]]``: every option with its type, range, default and meaning."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.table import Table
from rich.text import Text

from trainer.cli.common import Parser, exit_code, folding_table, table_console
from trainer.cli.help import CONF, names
from trainer.config.plugins import load_plugins
from trainer.config.schema import COMPONENTS, REGISTRIES, Config
from trainer.errors import ConfigError, nearest
from trainer.options import REQUIRED, Option, describe, options_of
from trainer.rundir.status import FINISHED

FIXED = ("loop", "checkpoint", "monitor")
"""Groups whose options are the same whatever is chosen."""

HEADS = ("option", "type", "default", "meaning")


class Documented(NamedTuple):
    """An option as a YAML file has it."""

    value: Any
    comment: str


def main(argv: Sequence[str]) -> int:
    """Runs a command line, without the word ``options``; returns the exit code."""
    return exit_code(lambda: run(argv))


def run(argv: Sequence[str]) -> int:
    """Prints the tables that are asked for; returns the exit code.

    Raises:
        ConfigError: there is no such group or component.
    """
    parser = Parser(
        prog="python -m trainer options",
        description="Lists the groups of options, the components of a group, or the options of a component.",
    )
    parser.add_argument("group", nargs="?", default="", metavar="GROUP[=NAME]", help="optimizer=adafisher")
    parser.add_argument("plugins", nargs="*", metavar="plugins=[MODULE]", help="plugins to import first")
    args = parser.parse_args(argv)
    load_plugins(args.plugins)
    table_console().print(table_of(args.group))
    return FINISHED


def table_of(asked: str) -> Table:
    """The table of a group, of a component as ``GROUP=NAME``, or of the options outside of groups.

    Raises:
        ConfigError: there is no such group or component.
    """
    group, _, name = asked.partition("=")
    if not group:
        return general_table()
    if group in FIXED:
        options = options_of(options_of(Config)[group].type)
        in_file = ("config.yaml", "loop") if group == "loop" else (f"{group}/default.yaml", None)
        return option_table(group, options, documented(CONF / in_file[0], in_file[1]))
    if group == "precision":  # its choices have no options
        return names_table(group, names(CONF / group))
    if group not in COMPONENTS:
        raise ConfigError(f"unknown group {group}{nearest(group, [*COMPONENTS, *FIXED, 'precision'])}")
    if name:
        registry, documents = COMPONENTS[group], documented(CONF / group / f"{name}.yaml")
        component = documents["name"].value if "name" in documents else name  # a preset's is another
        options = {**registry.common, **registry.get(component).options}
        return option_table(f"{group}={name}", options, documents)
    return names_table(group, choices(group))


def choices(group: str) -> list[str]:
    """The components of a group, and the files that preset options of one of them."""
    return sorted({*COMPONENTS[group].names(), *names(CONF / group)})


def names_table(group: str, choices: Sequence[str]) -> Table:
    """The choices of a group, each with the first line of its file."""
    table = folding_table("name", "what it is", title=f"{group}=NAME", whole=1)
    for name in choices:
        table.add_row(name, Text(head_of(CONF / group / f"{name}.yaml")))
    return table


def general_table() -> Table:
    """The options outside of all groups, and the groups with their choices."""
    documents = documented(CONF / "config.yaml")
    table = folding_table(*HEADS, title="options: python -m trainer options GROUP", whole=1)
    for key, option in options_of(Config).items():
        if key in COMPONENTS:
            table.add_row(key, "a group: " + ", ".join(choices(key)))
        elif key in (*FIXED, "precision"):
            table.add_row(key, "a group")
        else:
            table.add_row(*row(key, option, documents))
    return table


def option_table(title: str, options: Mapping[str, Option], documents: Mapping[str, Documented]) -> Table:
    """The table of options, whose meanings are the comments of their YAML file."""
    table = folding_table(*HEADS, title=title, whole=1)
    group, _, name = title.partition("=")
    prefix = f"{group}." if group in REGISTRIES or group in FIXED else f"{group}.{name}."
    for key, option in options.items():
        table.add_row(*row(key, option, documents, prefix))
    return table


def row(key: str, option: Option, documents: Mapping[str, Documented], prefix: str = "") -> list[Text]:
    """Name, type with its range, default and meaning of an option, as text that is not markup."""
    default = documents[key].value if key in documents else option.default
    shown = (
        "required"
        if default in (REQUIRED, "???")
        else json.dumps(default)
        if default != str(default)
        else default
    )
    comment = documents[key].comment if key in documents else ""
    return [Text(cell) for cell in (prefix + key, describe(option.type), shown, comment)]


def documented(file: Path, within: str | None = None) -> dict[str, Documented]:
    """The options of a YAML file, and of those that its ``defaults`` include.

    Args:
        file: in ``conf/``; one that does not exist, as that of a plugin's component, has none.
        within: the key of the mapping that is read; None: the whole file.
    """
    if not file.exists():
        return {}
    text = file.read_text()
    node: Any = yaml.compose(text)  # has the places of the values
    values = yaml.safe_load(text)
    if within:
        node = next(value for key, value in node.value if key.value == within)
        values = values[within]
    found: dict[str, Documented] = {}
    for key, value in node.value:
        if key.value == "defaults":
            for include in values["defaults"]:
                name = str(include).partition("@")[0]
                folder = CONF if name.startswith("/") else file.parent
                found |= documented(folder / f"{name.removeprefix('/')}.yaml")
        else:
            # a data set that changes a shared default does not repeat its meaning
            known = found.get(key.value, Documented(None, ""))
            found[key.value] = Documented(values[key.value], comment_after(value, text) or known.comment)
    return found


def comment_after(value: yaml.Node, text: str) -> str:
    """The comment at the end of the line in which a value ends; empty after a mapping of several lines."""
    if isinstance(value, yaml.MappingNode) and not value.flow_style:
        return ""
    end = value.end_mark
    return text.splitlines()[end.line][end.column :].strip().removeprefix("# ")


def head_of(file: Path) -> str:
    """The comment in the first line of a YAML file, or after that which says where Hydra puts it."""
    lines = file.read_text().splitlines() if file.exists() else []
    first = next((line for line in lines if not line.startswith("# @package")), "")
    return first.removeprefix("# ") if first.startswith("# ") else ""
