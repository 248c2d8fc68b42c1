"""Vectors of different lengths in one tensor, so that one operation works on all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Vectors:
    """All H, or all S, of several parameters.

    Args:
        sizes: the number of elements of each vector.
        counts: the number of vectors of each parameter; they follow each other.
    """

    def __init__(
        self, sizes: Sequence[int], counts: Sequence[int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.flat = torch.empty(sum(sizes), device=device, dtype=dtype)
        self.parts = self.flat.split(list(sizes))
        self.sizes, self.counts = (torch.tensor(numbers, device=device) for numbers in (sizes, counts))
        self.single = all(count == 1 for count in counts)

    def reduce(self, how: str, weights: Tensor | None = None) -> Tensor:
        """``sum``, ``mean``, ``min`` or ``max`` of each vector, [vectors], of its elements times weights [elements]."""
        flat = self.flat if weights is None else self.flat * weights
        return torch.segment_reduce(flat, how, lengths=self.sizes, unsafe=True)

    def repeat(self, values: Tensor) -> Tensor:
        """[vectors] -> [elements]: a value of each vector, for each of its elements."""
        return values.repeat_interleave(self.sizes, output_size=len(self.flat))

    def sum_by_param(self, values: Tensor) -> Tensor:
        """[vectors] -> [parameters]: the sum of a value of each vector over those of the same parameter."""
        return (
            values if self.single else torch.segment_reduce(values, "sum", lengths=self.counts, unsafe=True)
        )

    def of_param(self, values: Tensor) -> Tensor:
        """[parameters] -> [vectors]: a value of each parameter, for each of its vectors."""
        if self.single:
            return values
        return values.repeat_interleave(self.counts, output_size=len(self.sizes))
