"""Numbers as a person reads them."""

import pytest

from trainer.formatting import clock_time, counted, duration, memory, number, percent


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0:00"),
        (59.6, "1:00"),
        (754, "12:34"),
        (3723, "1:02:03"),
        (2 * 86400 + 3 * 3600 + 240, "2d 03:04"),
    ],
)
def test_clock_time(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0008, "0.8 ms"), (0.1234, "123 ms"), (2.345, "2.35 s"), (60, "1:00")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (0.0123456, "0.0123"),
        (0.000123456, "0.000123"),
        (1234.56789, "1234.5679"),
        (12345.6, "1.23e+04"),
        (-0.5, "-0.5000"),
        (0.0, "0.0000"),
        (3, "3"),
        (float("nan"), "nan"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_percent() -> None:
    assert percent(0.97222) == "97.22%"


def test_memory() -> None:
    assert (memory(0.033), memory(412.4), memory(2048)) == ("34 KiB", "412 MiB", "2.0 GiB")


def test_counted() -> None:
    assert (counted(1, "run"), counted(2000, "run")) == ("1 run", "2,000 runs")
