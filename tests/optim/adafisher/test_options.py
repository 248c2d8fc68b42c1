"""AdaFisher's options: their names, types and limits stand in the signature alone."""

import inspect
import typing

import pytest
from torch import nn

from trainer.optim.adafisher import AdaFisher, AdaFisherW, Interval
from trainer.optim.adafisher.limits import check, limits_of
from trainer.optim.adafisher.rules import RULES, RuleName

OPTIONS = (
    *("lr", "momentum", "damping", "gamma", "weight_decay"),
    *("decoupled", "rule", "roles", "update_interval", "capture", "fused", "maximize"),
)


def keyword_options(optimizer: type) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(optimizer).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def test_the_options() -> None:
    assert (*keyword_options(AdaFisher),) == OPTIONS


def test_adafisherw_has_the_same_options_but_decoupled() -> None:
    own, base = keyword_options(AdaFisherW), keyword_options(AdaFisher)
    del base["decoupled"]
    assert own == base


def test_every_rule_has_a_name() -> None:
    assert typing.get_args(RuleName) == (*RULES,)


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "text"),
    [
        (Interval(ge=0), (0, 2.5, float("inf")), (-1e-9, float("nan")), ">= 0"),
        (Interval(gt=0), (1e-9,), (0, -1), "> 0"),
        (Interval(ge=0, lt=1), (0, 0.999), (1, -0.1), ">= 0 and < 1"),
    ],
)
def test_interval(interval: Interval, inside: tuple, outside: tuple, text: str) -> None:
    assert all(value in interval for value in inside)
    assert not any(value in interval for value in (*outside, "1", None))
    assert str(interval) == text


def test_limits_are_those_of_the_signature() -> None:
    def target(
        *,
        rate: typing.Annotated[float, Interval(ge=0)] | None = None,
        kind: typing.Literal["a", "b"] | None = None,
        switch: bool | typing.Literal["auto"] | None = None,
        free: float = 0.0,
    ) -> None: ...

    assert limits_of(target) == {
        "rate": Interval(ge=0),
        "kind": ("a", "b", None),
        "switch": ("auto", True, False, None),
    }
    check(target, rate=0.5, kind=None)
    with pytest.raises(ValueError, match=r"^Invalid rate: -1, must be >= 0$"):
        check(target, rate=-1)
    with pytest.raises(ValueError, match=r"^Invalid kind: 'c', must be one of 'a', 'b', None$"):
        check(target, kind="c")


def test_messages() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"^Invalid damping: -1, must be > 0$"):
        AdaFisher(model, damping=-1)
    with pytest.raises(ValueError, match=r"^Invalid momentum: 1.5, must be >= 0 and < 1$"):
        AdaFisher(model).add_param_group({"params": [nn.Parameter(model.weight)], "momentum": 1.5})
