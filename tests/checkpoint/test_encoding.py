"""Nested values as JSON and tensors, and back."""

import json
import math
from collections import deque

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.kill_and_resume import differences
from trainer.checkpoint.encoding import decode, encode, tensor_places
from trainer.errors import CheckpointError


def test_what_goes_in_comes_out() -> None:
    value = {
        "a": [1, 2.5, True, None, "text", (1, (torch.arange(3), "x"))],
        "group": {0: torch.ones(2), "!tensor": "no tensor", (1, 2): []},
        "deque": deque([torch.zeros(1), 2], maxlen=5),
        "odd": [-0.0, 1e-300, 2**70],
        "dtype": torch.bfloat16,
    }
    tensors: dict[str, Tensor] = {}
    encoded = json.loads(json.dumps(encode(value, tensors), allow_nan=False))
    back = decode(encoded, tensors)
    assert differences({**back, "deque": list(back["deque"])}, {**value, "deque": list(value["deque"])}) == []
    assert back["deque"].maxlen == 5
    assert {name: place for name, place, _ in tensor_places(encoded)} == {
        "a/5/1/0": ("a", 5, 1, 0),
        "group/0": ("group", 0),
        "deque/0": ("deque", 0),
    }
    assert all(math.isnan(x) or math.isinf(x) for x in decode(encode([math.nan, -math.inf], {}), {}))
    assert encode(np.float32(0.5), {}) == 0.5


def test_places_of_one_name_are_told_apart() -> None:
    tensors: dict[str, Tensor] = {}
    value = {"a/b": {"c": torch.zeros(1)}, "a": {"b/c": torch.ones(1)}}
    assert differences(decode(encode(value, tensors), tensors), value) == []


def test_the_order_of_axes_in_memory_is_kept() -> None:
    """Of eigenvectors, for example, which stand in columns."""
    by_columns, usual = torch.zeros(2, 3, 4).permute(2, 0, 1), torch.zeros(2, 3)
    assert encode([by_columns, usual], {}) == [{"!tensor": "0", "order": [1, 2, 0]}, {"!tensor": "1"}]


def test_other_objects_are_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r"^optimizer\.state\.w is a set, which a checkpoint cannot hold"
    ):
        encode({"optimizer": {"state": {"w": {1, 2}}}}, {})
