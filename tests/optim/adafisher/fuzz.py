"""Random programs around an optimizer: ``python -m tests.optim.adafisher.fuzz --sequences 500``.

With λ → ∞ the calibrated rule is SGD with momentum whose steps have a length of their own, whatever H and S are. So
AdaFisher must move as such an SGD does, exactly, through all that programs do to models and optimizers: backward passes
that are dropped or are not the loss's, evaluation, parameters that are added and replaced, checkpoints, compilers.
And it must not be NaN where the SGD is not.
"""

import argparse
import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from trainer.optim.adafisher import AdaFisher

DAMPING = 1e20
"""So large that the curvature is under its last digit."""


class ShortSGD(torch.optim.Optimizer):
    """m ← β m + (1 − β) g, n = β m + (1 − β) g, θ ← (1 − η κ) θ − η 0.2 n / rms(n), written down once more."""

    def __init__(self, params: Any, lr: float, momentum: float = 0.9, weight_decay: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                m = state.setdefault("exp_avg", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                n = m.lerp(p.grad, 1 - group["momentum"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                rms = n.square().mean().sqrt()
                p.sub_(group["lr"] * 0.2 * n / rms.clamp(min=1e-300))


# Three models


class Experts(nn.Module):
    """Two experts, one of which may get no rows; a norm; a layer that is called as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 6) for _ in range(2))
        self.norm, self.gate, self.head = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, 0] > 0
        h = x.new_zeros(len(x), 6)
        h[first], h[~first] = self.experts[0](x[first]), self.experts[1](x[~first])
        return self.head(
            self.norm(h) * torch.sigmoid(nn.functional.linear(h, self.gate.weight, self.gate.bias))
        )


class Convolutions(nn.Sequential):
    """Grouped convolutions, batch norm."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 4, 2, padding=1, bias=False), nn.BatchNorm2d(4)),
            *(nn.ReLU(), nn.Conv2d(4, 4, 2, groups=2), nn.Flatten(), nn.Linear(16, 3)),
        )


class Attention(nn.Module):
    """Tokens, a tied weight, attention, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.project = nn.Embedding(7, 6), nn.Linear(6, 18)
        self.scale = nn.Parameter(torch.ones(6))
        self.out = nn.Linear(6, 7, bias=False)
        self.out.weight = self.tokens.weight
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens((x * 2).round().long().clamp(-3, 3) + 3)
        q, k, v = self.project(h * self.scale).chunk(3, -1)
        return self.head(self.out(scaled_dot_product_attention(q, k, v)).mean(1))


MODELS: list[Callable[[], nn.Module]] = [Experts, Convolutions, Attention]


class Program:
    """The same model twice, with both optimizers, and everything that may be done to them; ``random`` decides."""

    def __init__(self, make: Callable[[], nn.Module], seed: int, compiler: bool) -> None:
        self.random = random.Random(seed)
        torch.manual_seed(seed)
        model = make().double()
        self.models = [model, copy.deepcopy(model)]
        self.compiler, self.compiled = compiler, False
        self.lr = 10 ** self.random.uniform(-3, -1)
        interval = self.random.choice([1, 2, 3, 7])
        self.optimizers: list[torch.optim.Optimizer] = [
            AdaFisher(
                self.models[0], rule="calibrated", lr=self.lr, damping=DAMPING, update_interval=interval
            ),
            ShortSGD(self.models[1].parameters(), lr=self.lr),
        ]
        self.is_fresh = True  # no gradient has been made since zero_grad
        self.log: list[str] = []

    def forward(self, index: int, x: Tensor) -> Tensor:
        model = self.models[index]
        if not self.compiled or index:
            return model(x)
        return torch.compile(model, backend="eager", dynamic=False)(x)

    def batch(self) -> tuple[Tensor, Tensor]:
        size = self.random.choice([2, 3, 8])
        x = torch.randn(size, 4, dtype=torch.float64)
        return x, torch.randint(3, (size,))

    # What programs do

    def step(self) -> None:
        if not self.is_fresh:
            for optimizer in self.optimizers:
                optimizer.step()

    def train(self) -> None:
        self.zero_grad()
        self.backward()
        self.step()

    def backward(self) -> None:
        x, y = self.batch()
        for index in range(2):
            cross_entropy(self.forward(index, x), y).backward()
        self.is_fresh = False

    def only_forward(self) -> None:
        x, _ = self.batch()
        for index in range(2):
            with torch.set_grad_enabled(x[0, 0].item() > 0):
                self.forward(index, x)

    def evaluate(self) -> None:
        x, _ = self.batch()
        for index, model in enumerate(self.models):
            model.eval()
            with torch.no_grad():
                self.forward(index, x)
            model.train()

    def discarded_backward(self) -> None:
        """Not finite in half of the cases, and dropped in one of the ways in which people do it."""
        x, y = self.batch()
        how, factor = self.random.randrange(4), self.random.choice([1e6, float("nan"), float("inf")])
        for index, model in enumerate(self.models):
            (cross_entropy(self.forward(index, x), y) * factor).backward()
            if how == 0:
                model.zero_grad()
            elif how == 1:
                self.optimizers[index].zero_grad()
            else:
                for p in model.parameters():
                    if p.grad is not None and how == 2:
                        p.grad = None
                    elif p.grad is not None:
                        p.grad.zero_()
        self.is_fresh = True

    def repaired_backward(self) -> None:
        x, y = self.batch()
        for index, model in enumerate(self.models):
            (cross_entropy(self.forward(index, x), y) * float("nan")).backward()
            for p in model.parameters():
                if p.grad is not None:
                    p.grad.copy_(torch.linspace(-1, 1, p.numel()).view(p.shape))
        self.is_fresh = False

    def other_gradient(self) -> None:
        x, _ = self.batch()
        x.requires_grad_()
        for index in range(2):
            params = [p for p in self.models[index].parameters() if p.requires_grad]
            out = self.models[index](x).square().sum()
            torch.autograd.grad(out, params, create_graph=True, allow_unused=True)

    def zero_grad(self) -> None:
        set_to_none = self.random.random() < 0.7
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)
        self.is_fresh = True

    def add_layer(self) -> None:
        """A layer around the head, in a group of its own."""
        torch.manual_seed(self.random.randrange(1000))
        new = nn.Linear(3, 3).double()
        for model, optimizer in zip(self.models, self.optimizers, strict=True):
            layer = copy.deepcopy(new)
            model.append(layer) if isinstance(model, nn.Sequential) else model.__setattr__(
                "head", nn.Sequential(model.head, layer)
            )
            optimizer.add_param_group({"params": layer.parameters(), "lr": self.lr / 2})
        torch._dynamo.reset()

    def replace_parameter(self) -> None:
        """In the model and in its group, with or without its momentum."""
        names = [name for name, p in self.models[0].named_parameters() if p.dim() > 1]
        name = self.random.choice(names)
        keeps = self.random.random() < 0.5
        value = torch.randn_like(self.models[0].get_parameter(name))
        for model, optimizer in zip(self.models, self.optimizers, strict=True):
            old, new = model.get_parameter(name), nn.Parameter(value.clone())
            for module in model.modules():
                for key, param in module._parameters.items():
                    if param is old:
                        module._parameters[key] = new
            for group in optimizer.param_groups:
                group["params"] = [new if p is old else p for p in group["params"]]
            state = optimizer.state.pop(old, {})
            if keeps and state:
                optimizer.state[new] = state
        torch._dynamo.reset()
        self.zero_grad()

    def reset_state(self) -> None:
        for optimizer in self.optimizers:
            optimizer.state.clear()

    def save_and_load(self) -> None:
        for model, optimizer in zip(self.models, self.optimizers, strict=True):
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            model.load_state_dict(copy.deepcopy(model.state_dict()))

    def copy_all(self) -> None:
        for index, (model, optimizer) in enumerate(zip(self.models, self.optimizers, strict=True)):
            self.models[index], self.optimizers[index] = copy.deepcopy((model, optimizer))
        self.zero_grad()
        torch._dynamo.reset()

    def compile(self) -> None:
        self.compiled = self.compiler and not self.compiled

    def learning_rate(self) -> None:
        factor = self.random.uniform(0.5, 1.5)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= factor

    def check(self) -> None:
        pairs = zip(self.models[0].named_parameters(), self.models[1].parameters(), strict=True)
        for (name, ours), theirs in pairs:
            if theirs.isnan().any():
                continue  # there is nothing to be better than
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


STEPS = [Program.train] * 4 + [Program.step] * 3 + [Program.backward] * 4
OTHERS = [
    *(Program.only_forward, Program.evaluate, Program.discarded_backward, Program.discarded_backward),
    *(Program.repaired_backward, Program.other_gradient, Program.zero_grad, Program.add_layer),
    *(Program.replace_parameter, Program.reset_state, Program.save_and_load, Program.copy_all),
    *(Program.compile, Program.learning_rate),
]


def run(make: Callable[[], nn.Module], seed: int, length: int = 40, compiler: bool = True) -> None:
    """A random program; the assertion says after which of its parts AdaFisher and SGD part."""
    program = Program(make, seed, compiler)
    program.train()  # AdaFisher wants to have seen a layer before its first step
    for _ in range(length):
        part = program.random.choice(STEPS + OTHERS)
        program.log.append(part.__name__)
        part(program)
        try:
            program.check()
        except AssertionError as error:
            name = getattr(make, "__name__", make)
            raise AssertionError(f"{name}, seed {seed}: {' '.join(program.log)}\n{error}") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sequences", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    failed = 0
    for seed in range(args.first, args.first + args.sequences):
        if seed % 20 == 0:
            print(f"seed {seed}", flush=True)
        try:
            run(MODELS[seed % len(MODELS)], seed)
        except Exception as error:
            failed += 1
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
    print(f"{args.sequences} sequences, {failed} failed")


if __name__ == "__main__":
    main()
