"""The JSON that all commands write: strict, with null for a number that is not finite."""

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    """A value as strict JSON text: nan and the infinities become null."""
    return json.dumps(_without_nonfinite(value), indent=indent, allow_nan=False)


def as_float(value: float | None) -> float:
    """A number as `dumps` wrote it: null is nan."""
    return math.nan if value is None else float(value)


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
