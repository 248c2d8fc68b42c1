"""``python -m trainer options``: every option with its type, default and meaning."""

import pytest

from tests.config.test_configs import COMPONENTS
from trainer.cli.list_options import documented, main, option_table, table_of
from trainer.config.command_line import CONF
from trainer.config.schema import REGISTRIES
from trainer.errors import ConfigError


def cells(asked: str) -> dict[str, list[str]]:
    """The rows of a table by their first cell."""
    columns = [[str(cell) for cell in column.cells] for column in table_of(asked).columns]
    return {row[0]: list(row[1:]) for row in zip(*columns, strict=True)}


@pytest.mark.parametrize(("group", "name"), COMPONENTS)
def test_every_option_of_every_component_has_a_meaning(group: str, name: str) -> None:
    registry = REGISTRIES[group]
    options = {**registry.common, **registry.get(name).options}
    shown = cells(f"{group}={name}")
    assert [*shown] == [f"{group}.{option}" for option in options]
    assert all(meaning for _, _, meaning in shown.values()), shown


@pytest.mark.parametrize("group", ["loop", "checkpoint", "monitor"])
def test_fixed_groups(group: str) -> None:
    assert all(meaning for _, _, meaning in cells(group).values())


def test_type_range_default_and_meaning() -> None:
    assert cells("loop")["loop.ema"] == [
        "a number >= 0 and < 1 or null",
        "null",
        "decay per step of averaged weights, evaluated in addition to the raw ones",
    ]
    assert cells("data=text")["data.batch_size"][1] == "32"  # of its own file, not the shared one
    assert cells("checkpoint")["checkpoint.async"][1] == "false"
    assert cells("optimizer")["sgd"] == ["Stochastic gradient descent with momentum (torch.optim.SGD)."]
    assert "bf16" in cells("precision")
    assert cells("")["seed"][0] == "an integer"


def test_a_preset_has_the_options_of_its_component_with_its_own_values() -> None:
    preset, component = cells("optimizer=adafisher_paper"), cells("optimizer=adafisher")
    assert preset.pop("optimizer.rule")[1] == "paper"
    assert component.pop("optimizer.rule")[1] == "orthogonal"
    assert preset == component
    assert "small_images" in cells("data")


def test_names_of_options_are_whole_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["optimizer=adafisher"])
    out = capsys.readouterr().out
    assert " optimizer.decay_norms_and_biases " in out
    assert "…" not in out


def test_markup_in_comments_is_text() -> None:
    assert "pip install '.[zoo]'" in cells("optimizer")["pytorch_optimizer"][0]


def test_a_component_of_a_plugin_has_no_file() -> None:
    missing = documented(CONF / "model" / "no_such.yaml")
    assert missing == {}
    assert option_table("model=mine", {}, missing).row_count == 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("optimiser", "unknown group optimiser; did you mean optimizer?"),
        ("optimizer=adafish", "unknown optimizer 'adafish'; did you mean adafisher"),
    ],
)
def test_mistakes(asked: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="^" + message.replace("?", r"\?")):
        table_of(asked)
    assert main([asked]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
