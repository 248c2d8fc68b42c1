"""What each optimizer costs: seconds of a training step, and bytes of its state.

    python tests/benchmarks/costs.py --threads 1 --rounds 5

All contenders train copies of the same network on the same batch, in turns: in each round each takes as many steps as
lie between two refreshes of its factors, ten at most. A row has the median over rounds of the time of a step, forward
and backward included, the median of its ratios to SGD's (``--against``) in the same round, and the state's bytes, also as a multiple of
the parameters'. On a CPU the time is that of this process, which other programs lengthen little: give it one thread.
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
    "adafisher_orthogonal": {"name": "adafisher", "rule": "orthogonal"},
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


def resnet(batch: int, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    images = torch.randn(batch, 3, 32, 32, device=device)
    model = MODELS.build(MODELS.check({"name": "resnet18_cifar", "num_classes": 10, "in_channels": 3}))
    return model.to(device), images, torch.randint(10, (batch,), device=device)


def gpt(batch: int, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    model = GPT(layers=4, width=128, heads=4, vocab_size=256, context_length=128).to(device)
    tokens = torch.randint(256, (batch, 129), device=device)
    return model, tokens[:, :-1], tokens[:, 1:].flatten()


def autoencoder(batch: int, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    images = torch.rand(batch, 1, 28, 28, device=device)
    return Autoencoder(in_channels=1, image_size=28).to(device), images, images


NETWORKS = {"ResNet-18 (CIFAR)": resnet, "GPT, 4 layers of 128": gpt, "autoencoder": autoencoder}


def contender(model: nn.Module, x: Tensor, y: Tensor, config: dict[str, Any]) -> Contender:
    """One that has taken a whole cycle."""
    model = copy.deepcopy(model)
    checked = OPTIMIZERS.check({**config, "lr": LR})
    optimizer = OPTIMIZERS.build(checked, model, param_groups(model, True))
    graph = getattr(optimizer, "needs_create_graph", False)

    def step() -> None:
        optimizer.zero_grad()
        with twice_differentiable() if graph else nullcontext():
            outputs = model(x)
            loss = mse_loss(outputs, y) if y is x else cross_entropy(outputs.flatten(0, -2), y)
            loss.backward(create_graph=graph)
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


def measure(args: argparse.Namespace, network: str) -> Table:
    """The table of a network."""
    torch.manual_seed(0)
    model, x, y = NETWORKS[network](args.batch, args.device)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    contenders = {name: contender(model, x, y, CONTENDERS[name]) for name in args.optimizers}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, one in contenders.items():
            started = now(args.device)
            for _ in range(one.cycle):
                one.step()
            seconds[name].append((now(args.device) - started) / one.cycle)
    columns = ("optimizer", "ms a step", f"against {args.against}", "state, MiB", "of parameters")
    table = Table(*columns, title=f"{network}, batch {args.batch}, {size / 2**20:.1f} MiB of parameters")
    for name, one in contenders.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds[args.against], strict=True)]
        numbers = f"{median(seconds[name]) * 1e3:.1f}", f"{median(ratios):.2f}"
        table.add_row(name, *numbers, f"{one.state / 2**20:.1f}", f"{one.state / size:.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--optimizers", nargs="+", choices=CONTENDERS, default=[*CONTENDERS])
    parser.add_argument("--against", choices=CONTENDERS, default="sgd")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    args.optimizers = [args.against, *(name for name in args.optimizers if name != args.against)]
    torch.set_num_threads(args.threads)
    for network in args.networks:
        Console(width=110).print(measure(args, network))


if __name__ == "__main__":
    main()
