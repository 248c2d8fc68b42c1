import json
import math

import pytest

from trainer.rundir.strict_json import as_float, dumps


def test_no_number_that_json_lacks_is_written() -> None:
    value = {"a": math.nan, "b": [math.inf, (1.5, -math.inf)], "c": {"d": 0.1 + 0.2, "e": None, "f": True}}
    expected = {"a": None, "b": [None, [1.5, None]], "c": {"d": 0.1 + 0.2, "e": None, "f": True}}
    assert json.loads(dumps(value), parse_constant=pytest.fail) == expected
    assert "\n" in dumps(value, indent=2)


def test_null_is_read_as_nan() -> None:
    assert math.isnan(as_float(None))
    assert as_float(3) == 3.0
