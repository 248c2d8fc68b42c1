"""Nested values as JSON and tensors: a checkpoint holds no pickle, which could execute code when it is read."""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.errors import CheckpointError

TENSOR, TUPLE, DICT, DEQUE, FLOAT, DTYPE = "!tensor", "!tuple", "!dict", "!deque", "!float", "!dtype"
"""What JSON does not have is an object with one of these keys."""

ORDER = "order"
"""Beside ``TENSOR``: the tensor's axes, the one with the longest stride first, where they are not in order."""

DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
"""Data types of tensors by name."""

Place = tuple[Any, ...]
"""Where a value is: the keys and numbers that lead to it."""


def encode(value: Any, tensors: dict[str, Tensor], place: Place = ()) -> Any:
    """Makes JSON of nested mappings, lists, tuples, tensors and plain values.

    Args:
        value: to be encoded.
        tensors: takes up the tensors, each under a name that stands for it in the JSON.
        place: of the value.

    Raises:
        CheckpointError: it holds something else.
    """
    if isinstance(value, Tensor):
        name = "/".join(map(str, place))
        while name in tensors:
            name += "'"
        tensors[name] = value
        order = axes_in_memory(value)
        return {TENSOR: name} if order == sorted(order) else {TENSOR: name, ORDER: order}
    if isinstance(value, Mapping):
        items = [(key, encode(item, tensors, (*place, key))) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("!") for key in value):
            return dict(items)
        return {DICT: [[encode(key, tensors, place), item] for key, item in items]}
    if isinstance(value, list | tuple | deque):
        encoded = [encode(item, tensors, (*place, i)) for i, item in enumerate(value)]
        if isinstance(value, deque):
            return {DEQUE: [value.maxlen, encoded]}
        return encoded if isinstance(value, list) else {TUPLE: encoded}
    if isinstance(value, torch.dtype):
        return {DTYPE: str(value).removeprefix("torch.")}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT: str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"{'.'.join(map(str, place))} is a {type(value).__name__}, which a checkpoint cannot hold: "
        f"its state may consist of tensors, numbers, text, lists, tuples and dicts"
    )


def decode(encoded: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `encode` was given."""
    if isinstance(encoded, list):
        return [decode(item, tensors) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if TENSOR in encoded:
        return tensors[encoded[TENSOR]]
    if TUPLE in encoded:
        return tuple(decode(item, tensors) for item in encoded[TUPLE])
    if DICT in encoded:
        return {decode(key, tensors): decode(item, tensors) for key, item in encoded[DICT]}
    if DEQUE in encoded:
        maxlen, items = encoded[DEQUE]
        return deque((decode(item, tensors) for item in items), maxlen)
    if FLOAT in encoded:
        return float(encoded[FLOAT])
    if DTYPE in encoded:
        return DTYPES[encoded[DTYPE]]
    return {key: decode(item, tensors) for key, item in encoded.items()}


def axes_in_memory(tensor: Tensor) -> list[int]:
    """The axes of a tensor from the longest stride to the shortest: of a matrix stored by columns, ``[1, 0]``.

    Products of matrices are rounded differently in another order, so that a run that goes on needs the same.
    """
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda axis: -strides[axis])


def tensor_places(encoded: Any, place: Place = ()) -> Iterator[tuple[str, Place, list[int] | None]]:
    """The names of the tensors in what `encode` returned, where each is, and its axes' order if that is not usual."""
    if isinstance(encoded, list):
        for i, item in enumerate(encoded):
            yield from tensor_places(item, (*place, i))
    elif isinstance(encoded, dict):
        if TENSOR in encoded:
            yield encoded[TENSOR], place, encoded.get(ORDER)
        elif TUPLE in encoded:
            yield from tensor_places(encoded[TUPLE], place)
        elif DEQUE in encoded:
            yield from tensor_places(encoded[DEQUE][1], place)
        else:
            for key, item in encoded.get(DICT, encoded.items()):
                yield from tensor_places(item, (*place, key))
