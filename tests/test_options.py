"""Options of signatures and dataclasses, and what is said of values that do not fit."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from torch import Tensor

from trainer.errors import ConfigError
from trainer.options import (
    Count,
    Fraction,
    Positive,
    check_options,
    check_value,
    describe,
    flatten,
    is_number,
    options_of,
)


class Even:
    """Limits need not be a Range: any container whose text says what it holds."""

    def __contains__(self, value: int) -> bool:
        return value % 2 == 0

    def __str__(self) -> str:
        return "that is even"


@pytest.mark.parametrize(
    ("type_", "value", "converted"),
    [
        (float, 1, 1.0),
        (Positive | None, None, None),
        (tuple[Fraction, Fraction], [0, 0.5], (0.0, 0.5)),
        (Annotated[int, Even()], 4, 4),
        (Annotated[int, "text is a comment", Even()] | Tensor | None, 4, 4),
        (Literal["blocks"] | Count, 3, 3),
        (list[str], ("a",), ["a"]),
    ],
)
def test_values_are_converted(type_: Any, value: Any, converted: Any) -> None:
    found = check_value(type_, value, "x")
    assert (found, type(found)) == (converted, type(converted))


@pytest.mark.parametrize(
    ("type_", "value", "words"),
    [
        (float, True, "a number"),
        (Positive | None, 0, "a number > 0 or null"),
        (tuple[Fraction, Fraction], [0.5, 1], "a list, each a number >= 0 and < 1"),
        (Annotated[int, Even()], 3, "an integer that is even"),
        (Annotated[int, Even()] | Tensor | None, 3, "an integer that is even or null"),
        (bool | None, 1, "true or false or null"),
        (Literal["a", "b"], "c", "one of a, b"),
    ],
)
def test_what_does_not_fit_is_said_in_words(type_: Any, value: Any, words: str) -> None:
    assert describe(type_) == words
    with pytest.raises(
        ConfigError, match=f"^x={value if value != [0.5, 1] else '.*'} is wrong: it must be {words}$"
    ):
        check_value(type_, value, "x")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.inf, "a number > 0, and finite"),
        (-math.inf, "a number > 0, and finite"),
        (math.nan, "a number > 0"),
        (10**400, "a number > 0"),
    ],
    ids=["inf", "-inf", "nan", "more than a float can hold"],
)
def test_numbers_are_finite(value: float, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^x={value} is wrong: it must be {words}$"):
        check_value(Positive, value, "x")


@dataclass
class Shape:
    width: Count
    async_: bool = False


def test_options_of_classes_functions_and_dataclasses() -> None:
    class Component:
        def __init__(self, given: int, *, width: Count = 3) -> None: ...

    def component(given: int, *, width: Count = 3) -> None: ...

    assert options_of(Component) == options_of(component)
    assert [(o.name, o.type, o.default) for o in options_of(component).values()] == [("width", Count, 3)]
    assert list(options_of(Shape)) == ["width", "async"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widht": 1}, "unknown option shape.widht; did you mean width? (known: async, width)"),
        ({}, "shape.width is required: an integer >= 1"),
        ({"width": 0}, "shape.width=0 is wrong: it must be an integer >= 1"),
    ],
)
def test_mistakes_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_options(options_of(Shape), values, "shape")
    assert str(error.value) == message


def test_flatten() -> None:
    assert flatten({"a": 1, "b": {"c": [2], "d": {"e": None}}, "f": {}}) == {
        "a": 1,
        "b.c": [2],
        "b.d.e": None,
    }


def test_numbers() -> None:
    assert [is_number(value) for value in (1, 0.5, True, "1", None)] == [True, True, False, False, False]
