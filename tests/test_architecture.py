"""The floors of the house: each package imports only from its own floor and from those below it.

`FLOORS` is where they are written; docs/architecture.md shows them, and a test holds the two together.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = {  # from the ground up
    "ground": "_private errors signals streams options registry formatting metrics rundir trackers",
    "parts": "models data objectives callbacks optim monitor distributed",
    "run": "config checkpoint training",
    "commands": "cli report compare analyze evaluate predict generate export data.__main__ __main__",
    "cluster": "launch",
}
FLOOR_OF = {package: floor for floor, packages in enumerate(FLOORS.values()) for package in packages.split()}
FILES = sorted([*(ROOT / "trainer").rglob("*.py"), *(ROOT / "launch").rglob("*.py")])


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def package_of(module: str) -> str:
    """``optim`` of ``trainer.optim.muon``; ``launch`` of all of launch; nothing of ``trainer`` itself.

    A command in a package that is none itself counts as a package of its own: ``data.__main__``.
    """
    top, _, rest = module.partition(".")
    if top == "launch":
        return "launch"
    return rest if rest in FLOOR_OF else rest.partition(".")[0]


def imports_of(file: Path) -> Iterator[str]:
    """The modules of this project that a file imports, lazily too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(("trainer.", "launch.")))
        if isinstance(node, ast.ImportFrom):
            module = absolute_name(node, file)
            for alias in node.names if module.split(".")[0] in ("trainer", "launch") else ():
                below = ROOT / module.replace(".", "/") / alias.name
                is_module = below.with_suffix(".py").exists() or below.is_dir()
                yield f"{module}.{alias.name}" if is_module else module


def absolute_name(node: ast.ImportFrom, file: Path) -> str:
    """The module that ``from ... import`` names, a relative one too."""
    if not node.level:
        return str(node.module)
    package = file.parents[node.level - 1].relative_to(ROOT)
    return ".".join([*package.parts, *([node.module] if node.module else [])])


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=name)
def test_imports_lead_downwards(file: Path) -> None:
    here = package_of(module_name(file))
    if here:
        upwards = [module for module in imports_of(file) if FLOOR_OF[package_of(module)] > FLOOR_OF[here]]
        assert not upwards, f"imports from a floor above: {upwards}"


def test_relative_imports_are_seen() -> None:
    found = {*imports_of(ROOT / "trainer/optim/adafisher/refresh.py")}
    assert {"trainer.optim.adafisher.dtensor", "trainer.optim.adafisher.rules"} <= found


@pytest.mark.parametrize("file", FILES, ids=name)
def test_nobody_imports_a_command(file: Path) -> None:
    assert not [module for module in imports_of(file) if module.endswith("__main__")]


def test_packages_form_no_cycle() -> None:
    needs: dict[str, set[str]] = {}
    for file in FILES:
        here = package_of(module_name(file))
        needs.setdefault(here, set()).update({package_of(module) for module in imports_of(file)} - {here, ""})
    while ready := [package for package, below in needs.items() if not below & needs.keys()]:
        for package in ready:
            del needs[package]
    assert not needs, f"these import each other: {needs}"


def test_every_package_is_on_a_floor() -> None:
    packages = {package_of(module_name(file)) for file in FILES} - {""}
    assert packages == FLOOR_OF.keys()


@pytest.mark.parametrize("file", sorted((ROOT / "trainer/optim/adafisher").glob("*.py")), ids=name)
def test_adafisher_needs_torch_alone(file: Path) -> None:
    own = "trainer.optim.adafisher"
    assert not [module for module in imports_of(file) if not f"{module}.".startswith(f"{own}.")]
