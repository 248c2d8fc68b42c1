"""A small network, batches of it, and steps on them."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainer.optim.adafisher import AdaFisher


class Net(nn.Module):
    """With a class of its own, which no file of the trainer is needed to load."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(5, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.first(x))))


def batch(seed: int, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 5, generator=generator), torch.randint(3, (size,), generator=generator)


def backward(model: nn.Module, seed: int) -> None:
    x, y = batch(seed)
    cross_entropy(model(x), y).backward()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def everything(model: nn.Module, optimizer: AdaFisher) -> dict[str, Tensor]:
    """Parameters and their state, by name."""
    found = {}
    for name, param in model.named_parameters():
        found[name] = param.detach().clone()
        found |= {
            f"{name} {key}": torch.as_tensor(value).clone()
            for key, value in optimizer.state.get(param, {}).items()
        }
    return found


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")
