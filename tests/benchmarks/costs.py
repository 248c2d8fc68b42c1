"""What each optimizer costs: seconds of a training step, and bytes of its state.

    python tests/benchmarks/costs.py --threads 1 --rounds 5

All contenders train copies of the same network on the same batch, in turns: in each round each takes as many steps as
lie between two refreshes of its factors, ten at most. A row has the median over rounds of the time of a step, forward
and backward included, the median of its ratios to SGD's (``--against``) in the same round, and the state's bytes, also
as a multiple of the parameters'. On a CPU the time is that of this process, which other programs lengthen little: give
it one thread. The two large networks are for a GPU and run if they are named.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from trainer.models import MODELS
from trainer.models.autoencoder import Autoencoder
from trainer.models.gpt import GPT
from trainer.optim import OPTIMIZERS, param_groups
from trainer.training.step import twice_differentiable

CONTENDERS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in ("sgd", "adam", "adamw", "nadam", "adafactor", "muon", "adafisher")},
    "adafisher_calibrated": {"name": "adafisher", "rule": "calibrated"},
    "adafisher_paper": {"name": "adafisher", "rule": "paper"},
    "adafisher_released": {"name": "adafisher", "rule": "released"},
    "eva": {"name": "eva"},
    "eva, every 10 steps": {"name": "eva", "factor_interval": 10},
    "foof": {"name": "foof"},
    "kfac": {"name": "kfac"},
    "kfac, ekfac=true": {"name": "kfac", "ekfac": True},
    "kfac, ekfac=true, bases every 100 steps": {"name": "kfac", "ekfac": True, "inverse_interval": 100},
    "shampoo": {"name": "shampoo"},
    "shampoo, every 10 steps": {"name": "shampoo", "interval": 10},
    "adahessian": {"name": "adahessian"},
}
LR = 1e-4  # the network is to stay as it is


class Contender(NamedTuple):
    """An optimizer with its copy of the network."""

    step: Callable[[], None]
    cycle: int
    """Steps from one refresh to the next."""
    state: int
    """Bytes."""


class Network(NamedTuple):
    """A model with a batch of inputs and targets."""

    model: nn.Module
    x: Tensor
    y: Tensor
    dtype: torch.dtype | None = None
    """Of the products, by autocast."""

    def loss(self, model: nn.Module) -> Tensor:
        """Of a copy of the model."""
        with torch.autocast(self.x.device.type, self.dtype, enabled=self.dtype is not None):
            outputs = model(self.x)
        if self.y is self.x:
            return mse_loss(outputs, self.y)
        return cross_entropy(outputs.float().flatten(0, -2), self.y)


def resnet18(batch: int, device: str) -> Network:
    model = MODELS.build(MODELS.check({"name": "resnet18_cifar", "num_classes": 10, "in_channels": 3}))
    x = torch.randn(batch, 3, 32, 32, device=device)
    return Network(model.to(device), x, torch.randint(10, (batch,), device=device))


def gpt(batch: int, device: str, context: int, dtype: torch.dtype | None = None, **options: int) -> Network:
    tokens = torch.randint(options["vocab_size"], (batch, context + 1), device=device)
    model = GPT(context_length=context, **options).to(device)
    return Network(model, tokens[:, :-1], tokens[:, 1:].flatten(), dtype)


def autoencoder(batch: int, device: str) -> Network:
    x = torch.rand(batch, 1, 28, 28, device=device)
    return Network(Autoencoder(in_channels=1, image_size=28).to(device), x, x)


def resnet50(batch: int, device: str) -> Network:
    model = torchvision.models.resnet50().to(device, memory_format=torch.channels_last)
    x = torch.randn(batch, 3, 224, 224, device=device).to(memory_format=torch.channels_last)
    return Network(model, x, torch.randint(1000, (batch,), device=device), torch.bfloat16)


GPT2 = {"layers": 12, "width": 768, "heads": 12, "vocab_size": 50257}
NETWORKS: dict[str, Callable[[int, str], Network]] = {
    "ResNet-18 (CIFAR)": resnet18,
    "GPT, 4 layers of 128": lambda batch, device: gpt(
        batch, device, 128, layers=4, width=128, heads=4, vocab_size=256
    ),
    "autoencoder": autoencoder,
    "GPT-2, 124 M, bf16": lambda batch, device: gpt(batch, device, 1024, torch.bfloat16, **GPT2),
    "ResNet-50, bf16": resnet50,
}
ON_CPU = [*NETWORKS][:3]


def contender(network: Network, config: dict[str, Any]) -> Contender:
    """One that has taken a whole cycle."""
    model = copy.deepcopy(network.model)
    checked = OPTIMIZERS.check({**config, "lr": LR})
    optimizer = OPTIMIZERS.build(checked, model, param_groups(model, True))
    graph = getattr(optimizer, "needs_create_graph", False)

    def step() -> None:
        optimizer.zero_grad()
        with twice_differentiable() if graph else nullcontext():
            network.loss(model).backward(create_graph=graph)
        optimizer.step()

    intervals = ("update_interval", "factor_interval", "inverse_interval", "interval")
    cycle = min(10, max(getattr(optimizer, name, 1) for name in intervals))
    for _ in range(2):
        step()
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return Contender(step, cycle, sum(t.numel() * t.element_size() for t in tensors))


def now(device: str) -> float:
    """Seconds: of this process on a CPU; on a GPU those of the clock, once it has done what it was given."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(args: argparse.Namespace, name: str) -> Table:
    """The table of a network."""
    torch.manual_seed(0)
    network = NETWORKS[name](args.batch, args.device)
    size = sum(p.numel() * p.element_size() for p in network.model.parameters())
    contenders = {each: contender(network, CONTENDERS[each]) for each in args.optimizers}
    seconds: dict[str, list[float]] = {each: [] for each in contenders}
    for _ in range(args.rounds):
        for each, one in contenders.items():
            started = now(args.device)
            for _ in range(one.cycle):
                one.step()
            seconds[each].append((now(args.device) - started) / one.cycle)
    columns = ("optimizer", "ms a step", f"against {args.against}", "state, MiB", "of parameters")
    table = Table(*columns, title=f"{name}, batch {args.batch}, {size / 2**20:.1f} MiB of parameters")
    for each, one in contenders.items():
        ratios = [a / b for a, b in zip(seconds[each], seconds[args.against], strict=True)]
        numbers = f"{median(seconds[each]) * 1e3:.1f}", f"{median(ratios):.2f}"
        table.add_row(each, *numbers, f"{one.state / 2**20:.1f}", f"{one.state / size:.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=ON_CPU)
    parser.add_argument("--optimizers", nargs="+", choices=CONTENDERS, default=[*CONTENDERS])
    parser.add_argument("--against", choices=CONTENDERS, default="sgd")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    args.optimizers = [args.against, *(name for name in args.optimizers if name != args.against)]
    torch.set_num_threads(args.threads)
    for name in args.networks:
        Console(width=110).print(measure(args, name))


if __name__ == "__main__":
    main()
