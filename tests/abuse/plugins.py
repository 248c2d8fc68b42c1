"""Models that keep more than parameters."""

from typing import Any

import torch
from torch import Tensor, nn

from trainer.models import MODELS
from trainer.options import Count


class Calls(nn.Module):
    """Multiplies by a factor that grows with each training step."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("scale", torch.ones((), dtype=torch.float64), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            self.scale.fill_(1 + self.calls / 100)
        return inputs * self.scale.to(inputs.dtype)

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


class Odd(nn.Identity):
    """Keeps something that is data for nobody else."""

    def get_extra_state(self) -> Any:
        return object()

    def set_extra_state(self, state: Any) -> None:
        pass


@MODELS.register("counts_calls")
def counts_calls(*, num_classes: Count | None = None) -> nn.Module:
    return nn.Sequential(Calls(), nn.Flatten(), nn.LazyLinear(num_classes))


@MODELS.register("all_frozen")
def all_frozen(*, num_classes: Count | None = None) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes or 10)).requires_grad_(False)


@MODELS.register("keeps_an_object")
def keeps_an_object(*, num_classes: Count | None = None) -> nn.Module:
    return nn.Sequential(Odd(), nn.Flatten(), nn.LazyLinear(num_classes))
