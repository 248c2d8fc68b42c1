"""Registries: components by name, from whatever file they are in."""

import importlib
import sys
from pathlib import Path

import pytest

from trainer.errors import BuildError, ConfigError
from trainer.options import Count, Option
from trainer.registry import Registry


def test_a_new_file_is_a_new_component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "parts_of_test"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from trainer.registry import Registry, import_submodules\n"
        "PARTS = Registry('part')\n"
        "import_submodules(__name__)\n"
    )
    for name in ("one", "two"):
        (package / f"{name}.py").write_text(
            f"from parts_of_test import PARTS\n\n"
            f"@PARTS.register('{name}')\ndef make(*, size: int = 1):\n    return size\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    from parts_of_test import PARTS  # type: ignore[import-not-found]

    assert PARTS.names() == ["one", "two"]
    assert PARTS.build(PARTS.check({"name": "two", "size": 5})) == 5
    for name in [name for name in sys.modules if name.startswith("parts_of_test")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("package", ["models", "data", "objectives", "callbacks", "optim", "monitor"])
def test_every_module_of_the_packages_of_components_is_imported(package: str) -> None:
    imported = importlib.import_module(f"trainer.{package}")
    modules = {path.stem for path in Path(imported.__path__[0]).glob("*.py")} - {"__init__", "__main__"}
    assert {f"trainer.{package}.{module}" for module in modules} <= sys.modules.keys()


def test_options_that_no_signature_tells() -> None:
    registry = Registry("part")
    registry.add(
        "power",
        lambda base, **options: base ** options["exponent"],
        {"exponent": Option("exponent", Count, 2)},
    )
    assert registry.build(registry.check({"name": "power"}), 3) == 9
    with pytest.raises(ConfigError, match=r"^part\.exponent=0 is wrong: it must be an integer >= 1$"):
        registry.check({"name": "power", "exponent": 0})


def test_what_a_component_refuses_is_the_users_mistake() -> None:
    def refuse(*, low: int = 0, high: int = 1) -> None:
        if low > high:
            raise ValueError("low must be\nless than high")

    strict, plain = Registry("part", refusals=(ValueError,)), Registry("part")
    for registry in (strict, plain):
        registry.register("interval")(refuse)
    config = {"name": "interval", "low": 2, "high": 1}
    with pytest.raises(ConfigError, match=r"^part=interval: low must be less than high$"):
        strict.build(config)
    with pytest.raises(
        BuildError, match=r"^part=interval cannot be built: ValueError: low must be less than high"
    ):
        plain.build(config)


def test_a_name_is_taken_once() -> None:
    registry = Registry("part")
    registry.register("sum")(sum)
    with pytest.raises(ValueError, match="'sum' is registered already"):
        registry.register("sum")(Path)
