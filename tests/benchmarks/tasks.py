"""Small tasks to train on with one thread, in seconds to minutes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.data.fashion_mnist import fashion_mnist
from trainer.models.autoencoder import Autoencoder
from trainer.models.cnn import CNN
from trainer.models.gpt import GPT
from trainer.models.resnet import ResNet18


@dataclass(frozen=True)
class Task:
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]
    evaluate: Callable[[nn.Module], float]
    metric: str
    lower_is_better: bool
    steps: int
    weight_decay: float
    clip: float = math.inf


@cache
def text_task(path: str, steps: int = 300, width: int = 128) -> Task:
    """A character model with a tied output layer, validated on the last tenth of the text."""
    text = Path(path).read_text()
    characters = sorted(set(text))
    tokens = torch.tensor([characters.index(c) for c in text])
    train, validation = tokens[: len(tokens) * 9 // 10], tokens[len(tokens) * 9 // 10 :]
    context = 64

    def cut(source: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        window = source[starts[:, None] + torch.arange(context + 1)]  # [B, T + 1]
        return window[:, :-1], window[:, 1:]

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def evaluate(model: nn.Module) -> float:
        starts = torch.arange(0, len(validation) - context - 1, context).split(256)
        return mean(loss(model(x), y).item() for x, y in (cut(validation, part) for part in starts))

    return Task(
        model=lambda: GPT(
            layers=4, width=width, heads=width // 32, vocab_size=len(characters), context_length=context
        ),
        batch=lambda generator: cut(
            train, torch.randint(len(train) - context - 1, (16,), generator=generator)
        ),
        loss=loss,
        evaluate=evaluate,
        metric="validation loss",
        lower_is_better=True,
        steps=steps,
        weight_decay=0.1,
        clip=1.0,
    )


@cache
def images_task() -> Task:
    """A BatchNorm CNN that classifies Fashion-MNIST."""
    return _classification(lambda: CNN(num_classes=10, in_channels=1, image_size=28), batch_size=128)


@cache
def residual_task() -> Task:
    """A ResNet-18 of a quarter of the width, with batch norm, on Fashion-MNIST at 32 x 32 pixels."""
    return _classification(
        lambda: nn.Sequential(nn.ZeroPad2d(2), ResNet18(width=16, num_classes=10, in_channels=1)),
        batch_size=64,
    )


def _classification(model: Callable[[], nn.Module], batch_size: int) -> Task:
    data = fashion_mnist(torch.device("cpu"), 0)
    test = data.evals["test"]

    def evaluate(model: nn.Module) -> float:
        return mean((model(x).argmax(1) == y).float().mean().item() for x, y in _thousands(test)) * 100

    return Task(
        model=model,
        batch=lambda generator: _drawn(data.train, batch_size, generator),
        loss=F.cross_entropy,
        evaluate=evaluate,
        metric="test accuracy %",
        lower_is_better=False,
        steps=300,
        weight_decay=0.01,
    )


@cache
def autoencoder_task() -> Task:
    """A deep autoencoder of Fashion-MNIST's pixels in [0, 1]."""
    data = fashion_mnist(torch.device("cpu"), 0, normalize=False)
    test = data.evals["test"]

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, _ = _drawn(data.train, 256, generator)
        return x, x

    def evaluate(model: nn.Module) -> float:
        return mean(F.mse_loss(model(x), x).item() for x, _ in _thousands(test)) * 1000

    return Task(
        model=lambda: Autoencoder(in_channels=1, image_size=28),
        batch=batch,
        loss=F.mse_loss,
        evaluate=evaluate,
        metric="test MSE x 1000",
        lower_is_better=True,
        steps=250,
        weight_decay=0.01,
    )


def _drawn(source: Any, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return source.batch(torch.randint(len(source), (count,), generator=generator), None)


def _thousands(source: Any) -> Iterator[tuple[Tensor, Tensor]]:
    return (source.batch(part, None) for part in torch.arange(len(source)).split(1000))


TASKS: dict[str, Callable[[str], Task]] = {
    "text": text_task,
    "images": lambda text: images_task(),
    "autoencoder": lambda text: autoencoder_task(),
    "long_text": lambda text: text_task(text, steps=2000),
    "residual": lambda text: residual_task(),
    "text_64": lambda text: text_task(text, width=64),
    "text_256": lambda text: text_task(text, width=256),
    "text_512": lambda text: text_task(text, width=512),
}
"""By name; each takes the path of a text."""
