"""Small training runs of the calibrated rule that need no random numbers, and their recorded parameters.

``python -m tests.optim.adafisher.calibrated_runs`` records them anew.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainer.optim.adafisher import AdaFisher

GOLDEN = Path(__file__).parent / "golden" / "calibrated.npz"
STEPS = 30
Batch = tuple[Tensor, Tensor]


class Tied(nn.Module):
    """A language model without attention whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 6)
        self.norm = nn.RMSNorm(6, eps=1e-6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.head(self.norm(x + torch.tanh(self.hidden(x)))).flatten(0, 1)


def convnet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(36, 5), nn.LayerNorm(5), nn.Linear(5, 3)),
    )


def waves(shape: tuple[int, ...], phase: float) -> Tensor:
    """Numbers without a pattern in [-1, 1]."""
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) ** 1.5 + phase).view(shape)


def images(step: int) -> Batch:
    return 2 * waves((12, 2, 5, 5), step), torch.arange(12) * (step + 1) % 3


def text(step: int) -> Batch:
    tokens = (5 * waves((8, 7), step)).round().long() + 5
    return tokens[:, :-1], tokens[:, 1:].flatten()


RUNS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Batch], float]] = {
    "cnn": (convnet, images, float("inf")),
    "tied": (Tied, text, float("inf")),
    "clipped": (Tied, text, 0.05),
}
"""The model, its batches and the norm to which gradients are clipped."""


def train(run: str) -> dict[str, Tensor]:
    """Parameters after 10, 20 and 30 steps, by ``step/name``."""
    make, batch, clip = RUNS[run]
    model = make().double()
    for index, param in enumerate(model.parameters()):
        nn.init.ones_(param) if param.dim() < 2 else param.data.copy_(waves(tuple(param.shape), index) / 2)
    optimizer = AdaFisher(model, lr=1e-2, rule="calibrated", update_interval=4)
    found = {}
    for step in range(1, STEPS + 1):
        x, y = batch(step)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if step % 10 == 0:
            found |= {f"{step}/{name}": p.detach().clone() for name, p in model.named_parameters()}
    return found


if __name__ == "__main__":
    np.savez_compressed(
        GOLDEN,
        **{f"{run}/{key}": value.numpy() for run in RUNS for key, value in train(run).items()},
    )
