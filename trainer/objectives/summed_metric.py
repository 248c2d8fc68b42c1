"""Metrics of the package torchmetrics as a part of an objective's totals."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torchmetrics import Metric


class SummedMetric:
    """A torchmetrics ``Metric`` whose states are sums over samples, such as ``MulticlassF1Score``.

    An objective adds `totals` of each batch to its own, and makes the metric of their sum by `value`: it is exact over
    batches and ranks of any size, as long as whole numbers in float32 are: 16 million of a batch.

    Args:
        metric: its states are tensors that are reduced by summation.

    Raises:
        ValueError: it keeps something else, such as all predictions.
    """

    def __init__(self, metric: "Metric") -> None:
        self.metric = metric.set_dtype(torch.float32)
        self.metric.sync_on_compute = False  # totals are summed over ranks already
        odd = [name for name, how in metric._reductions.items() if not self._is_sum(name, how)]
        if odd:
            raise ValueError(
                f"{type(metric).__name__} does not add up: its state {odd[0]} is no sum over samples"
            )
        self.size = sum(default.numel() for default in self._defaults.values())
        """The number of entries that it takes of the totals."""

    def totals(self, *batch: Tensor) -> Tensor:
        """The states after one batch, given as ``Metric.update`` takes it: float32 [size]."""
        self.metric.to(batch[0].device).reset()
        self.metric.update(*(part.detach() for part in batch))
        return torch.cat([getattr(self.metric, name).float().flatten() for name in self._defaults])

    def value(self, totals: Tensor) -> float:
        """The metric, a single number, from the sum of any number of `totals`."""
        self.metric.to(totals.device).reset()
        parts = totals.split([default.numel() for default in self._defaults.values()])
        for (name, default), part in zip(self._defaults.items(), parts, strict=True):
            setattr(self.metric, name, part.view(default.shape).to(default.dtype))
        self.metric._update_count = 1  # or it warns that it has seen nothing
        return float(self.metric.compute())

    @property
    def _defaults(self) -> dict[str, Tensor]:
        defaults: dict[str, Any] = self.metric._defaults
        return defaults

    def _is_sum(self, name: str, how: Any) -> bool:
        from torchmetrics.utilities import dim_zero_sum

        return how is dim_zero_sum and isinstance(self.metric._defaults[name], Tensor)
