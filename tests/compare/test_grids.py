from typing import Any

import pytest

from trainer.compare.grids import Interval, grid_values, search_domain
from trainer.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("log(1e-4,1,5)", [1e-4, 1e-3, 1e-2, 0.1, 1.0]),
        ("log(1, 9, 3)", [1.0, 3.0, 9.0]),
        ("log(1e-3,3e-2,4)", [1e-3, 3.107e-3, 9.655e-3, 3e-2]),
        ("lin(0,1,5)", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("lin(-1,1,2)", [-1.0, 1.0]),
        ("[1e-4,0.5,2]", [1e-4, 0.5, 2]),
        ("[calibrated,paper]", ["calibrated", "paper"]),
        ("[null,true]", [None, True]),
    ],
)
def test_values(text: str, values: list[Any]) -> None:
    assert grid_values("tune.lr", text) == values


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0.1",
        "1e-3,1e-2",
        "[0.1]",
        "[0.1,0.1]",
        "[0.1",
        "log(0,1,3)",
        "log(1,1,3)",
        "log(1,0.1,3)",
        "log(0.1,1,1)",
        "log(0.1,1,2.5)",
        "log(0.1,1)",
        "log(a,b,c)",
        "lin(0,1,3",
        "exp(0,1,3)",
    ],
)
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^tune\.lr=.* is wrong: it must be log\(low,high,n\).*") as error:
        grid_values("tune.lr", text)
    assert "\n" not in str(error.value)


def test_domains_of_a_search() -> None:
    assert search_domain("tune.lr", "log(1e-4, 1)") == Interval("log", 1e-4, 1.0)
    assert search_domain("tune.lr", "lin(-1,1)") == Interval("lin", -1.0, 1.0)
    assert search_domain("tune.lr", "[null,0.1]") == [None, 0.1]


def test_a_value_has_four_digits_and_stays_in_its_interval() -> None:
    interval = Interval("lin", 0.123456, 0.654321)
    assert [interval.rounded(value) for value in (0.123456, 0.2000049, 0.654321)] == [0.1235, 0.2, 0.6543]
    assert Interval("lin", 0.123456, 0.98769).rounded(0.98769) == 0.98769
