"""What AdaFisher costs by its calibrated and its paper's rule, against torch's optimizers; by the others: `costs.py`.

    python tests/benchmarks/optimizer.py [--rows refresh memory eager ...] [--batch 64] [--threads 2] [--rounds 15]

Contenders take turns, and the figures are medians and the median of the ratios within a round. Every row runs on the
CPU or, with ``--device cuda``, on a GPU; the rows ``imagenet`` and ``cuda`` are for a GPU alone.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.models.gpt import GPT
from trainer.models.resnet import ResNet18
from trainer.optim import AdaFisher
from trainer.optim.adafisher import hooks

NEVER = 10**9  # an update interval: only the first step refreshes
Make = Callable[[nn.Module], torch.optim.Optimizer]


def adafisher(**options: Any) -> Make:
    return lambda model: AdaFisher(model, **{"rule": "calibrated", **options})


def adamw(**options: Any) -> Make:
    return lambda model: torch.optim.AdamW(model.parameters(), **options)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)


class Benchmark:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.table = Table(title=f"{args.device}, {args.threads} threads, medians of {args.rounds} rounds")
        for column in ("what", "AdaFisher", "reference", "ratio", "to reach"):
            self.table.add_column(column)

    def report(self, what: str, own: str, reference: str, ratio: str, goal: str) -> None:
        self.table.add_row(what, own, reference, ratio, goal)
        print(f"{what}: {own} against {reference}: {ratio} (to reach: {goal})", flush=True)

    def compare(self, what: str, own: Callable[[], Any], reference: Callable[[], Any], goal: str) -> None:
        """Times two functions that take turns."""
        times: list[tuple[float, float]] = []
        for _ in range(self.args.rounds + 2):
            times.append((self._seconds(own), self._seconds(reference)))
        a, b = (median(column) * 1e3 for column in zip(*times[2:], strict=True))
        ratio = median(x / y for x, y in times[2:])
        self.report(what, f"{a:.2f} ms", f"{b:.2f} ms", f"{ratio:.3f}", goal)

    def _seconds(self, function: Callable[[], Any]) -> float:
        self._wait()
        started = time.perf_counter()
        function()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.args.device == "cuda":
            torch.cuda.synchronize()

    # Models

    def batch(self, size: int = 32, classes: int = 10) -> tuple[Tensor, Tensor]:
        x = torch.randn(self.args.batch, 3, size, size, device=self.args.device)
        return x, torch.randint(classes, (self.args.batch,), device=self.args.device)

    def resnet(self) -> nn.Module:
        torch.manual_seed(0)
        return ResNet18(num_classes=10, in_channels=3).to(self.args.device)

    def stepper(self, make: Make, model: nn.Module | None = None, loss: Any = None) -> torch.optim.Optimizer:
        """An optimizer with gradients in place, warmed up."""
        model = model or self.resnet()
        optimizer = make(model)
        x, y = (t[:8] for t in self.batch())
        (loss or (lambda m: cross_entropy(m(x), y)))(model).backward()
        for _ in range(3):
            optimizer.step()
        return optimizer

    def trainer(self, make: Make, compiled: bool = False) -> Callable[[], None]:
        model = self.resnet()
        return self.training_step(
            make(model), torch.compile(model, fullgraph=True) if compiled else model, *self.batch()
        )

    def imagenet_trainer(self, make: Make) -> Callable[[], None]:
        """ResNet-50 in bfloat16 and channels last."""
        torch.manual_seed(0)
        model = torchvision.models.resnet50().to(self.args.device, memory_format=torch.channels_last)
        x, y = self.batch(224, 1000)

        def forward(x: Tensor) -> Tensor:
            with torch.autocast(self.args.device, torch.bfloat16):
                return model(x).float()

        return self.training_step(make(model), forward, x.to(memory_format=torch.channels_last), y)

    def training_step(
        self, optimizer: torch.optim.Optimizer, forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor
    ) -> Callable[[], None]:
        """Warmed up."""

        def step() -> None:
            optimizer.zero_grad()
            cross_entropy(forward(x), y).backward()
            optimizer.step()

        step()
        step()
        return step

    # Rows

    def refresh(self) -> None:
        """All factors and averages of one step: its forward and backward with hooks against those without."""
        model, (x, y) = self.resnet(), self.batch()
        optimizer = adafisher(update_interval=1)(model)

        def plain() -> None:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()

        def refreshing() -> None:
            optimizer._capture.attach()
            plain()
            with torch.no_grad():
                seen = optimizer._capture.collect(1.0, per_sample=True)
                optimizer._refresh(optimizer._tracked_with_gradient(), seen)
            optimizer._capture.detach()

        optimizer._capture.detach()
        self.compare("refresh + forward + backward, against both", refreshing, plain, "<= 1.08")

    def checks(self) -> None:
        """What it costs a step to trust neither captures nor caches, an interval of 10, against a training step.

        In seconds of this thread, which other programs do not lengthen: for the CPU.
        """
        torch.manual_seed(0)
        gpt = GPT(layers=12, width=768, heads=12, vocab_size=50257, context_length=1024)
        deep = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(300)))
        for name, model, x in (
            ("300 layers of width 32, batch 32", deep, torch.randn(32, 32)),
            ("GPT of 124 M, 64 tokens", gpt, torch.randint(50257, (1, 64))),
        ):
            optimizer = AdaFisher(model, rule="calibrated", lr=1e-5)
            capture = optimizer._capture
            model(x).square().mean().backward()
            factors = [factor for item in capture._seen.values() for factor in (item.H, item.S)]
            tracked = optimizer._tracked_with_gradient()

            def refresh() -> None:
                capture._drop_discarded()  # noqa: B023
                hooks._flat(factors).isfinite().all().item()  # noqa: B023
                optimizer._warnings.check(tracked, -1)  # noqa: B023

            def look() -> None:
                optimizer._warnings.check_model(optimizer.model, optimizer._names)  # noqa: B023

            def train() -> None:
                optimizer.zero_grad()  # noqa: B023
                model(x).square().mean().backward()  # noqa: B023
                optimizer.step()  # noqa: B023

            parts = (optimizer._follow, refresh, look, train)
            times = [[self._thread_seconds(part) for part in parts] for _ in range(self.args.rounds + 2)]
            follow, refreshing, looking, step = (median(c) * 1e3 for c in zip(*times[2:], strict=True))
            own = follow + refreshing / 10 + looking / 100
            self.report(f"checks, {name}", f"{own:.3f} ms", f"{step:.1f} ms", f"{own / step:.4f}", "<= 0.01")

    def _thread_seconds(self, function: Callable[[], Any]) -> float:
        started = time.thread_time()
        function()
        return time.thread_time() - started

    def memory(self) -> None:
        """Largest sum of the temporaries that a refresh holds at once, of the largest layer, in bytes."""
        model, (x, _y) = self.resnet(), self.batch()
        optimizer = adafisher(update_interval=1)(model)
        largest = 0
        with Activations(model) as activations:
            for module, layer in optimizer._capture.layers.items():
                calls: list[tuple[Tensor, Tensor]] = []
                handle = module.register_forward_hook(
                    lambda m, a, o, c=calls: c.append((a[0].detach(), o.detach()))
                )
                with torch.no_grad():
                    model(x)
                handle.remove()
                for tensor_in, out in calls:
                    for function in (lambda: layer.H(tensor_in, out.shape), lambda: layer.S(out)):  # noqa: B023
                        largest = max(largest, temporary_bytes(function))
        goal = f"<= {activations.largest / 2**20:.1f} MiB"
        self.report(
            "temporary memory of a refresh, against the largest activation",
            f"{largest / 2**20:.2f} MiB",
            f"{activations.largest / 2**20:.2f} MiB",
            f"{largest / activations.largest:.3f}",
            goal,
        )

    def eager(self) -> None:
        own = {
            rule: self.stepper(adafisher(rule=rule, update_interval=NEVER))
            for rule in ("calibrated", "paper")
        }
        for kind, goal in (("foreach", "<= 0.6"), ("fused", "<= 2")):
            reference = self.stepper(adamw(**{kind: True}))
            for rule, optimizer in own.items():
                what = f"step(), ResNet-18, {rule}, against AdamW({kind})"
                self.compare(what, optimizer.step, reference.step, goal)

    def compiled(self) -> None:
        if self.args.device == "cuda":
            self.report("step() compiled", "kernels are faster: see cuda", "-", "-", "<= 1.0")
            return
        reference = self.stepper(adamw(fused=True))
        for rule in ("calibrated", "paper"):
            optimizer = self.stepper(adafisher(rule=rule, update_interval=NEVER, fused="compile"))
            self.compare(
                f"step() compiled, {rule}, against AdamW(fused)", optimizer.step, reference.step, "<= 1.0"
            )

    def temporary(self) -> None:
        """Temporaries of step() against the largest parameter."""
        optimizer = self.stepper(adafisher(update_interval=NEVER))
        parameter = max(
            p.numel() * p.element_size() for group in optimizer.param_groups for p in group["params"]
        )
        used = temporary_bytes(optimizer.step)
        self.report(
            "temporary memory of step(), against the largest parameter",
            f"{used / 2**20:.2f} MiB",
            f"{parameter / 2**20:.2f} MiB",
            f"{used / parameter:.3f}",
            "< 1",
        )

    def state(self) -> None:
        own, reference = (state_bytes(self.stepper(make)) for make in (adafisher(), adamw()))
        self.report(
            "optimizer state, against AdamW",
            f"{own / 2**20:.2f} MiB",
            f"{reference / 2**20:.2f} MiB",
            f"{own / reference:.4f}",
            "<= 0.51",
        )

    def training(self) -> None:
        """Whole steps of the small ResNet-18."""
        self.compare_training("ResNet-18", self.trainer)

    def imagenet(self) -> None:
        """Whole steps of ResNet-50 with images of 224 x 224, in bfloat16."""
        if self.args.device != "cuda":
            self.report("training steps of ResNet-50, CUDA", "no GPU", "-", "-", "<= 1.03, <= 1.10")
            return
        self.compare_training("ResNet-50", self.imagenet_trainer)

    def compare_training(self, name: str, trainer: Callable[[Make], Callable[[], None]]) -> None:
        """With an interval of 10 a round is ten steps, one of which refreshes."""
        reference = trainer(sgd)
        for interval, goal in ((10, "<= 1.03"), (1, "<= 1.10")):
            own = trainer(adafisher(update_interval=interval, lr=1e-3))
            turns = range(interval)
            self.compare(
                f"{interval} training steps of {name}, interval {interval}, against SGD(fused)",
                lambda: [own() for _ in turns],  # noqa: B023
                lambda: [reference() for _ in turns],  # noqa: B023
                goal,
            )

    def compiled_model(self) -> None:
        """Steps between refreshes of a compiled model."""
        counters = torch._dynamo.utils.counters
        reference = self.trainer(adamw(fused=True), compiled=True)
        own = self.trainer(adafisher(update_interval=NEVER, lr=1e-3), compiled=True)
        graphs = counters["stats"]["unique_graphs"]
        self.compare("training step of a compiled model, against AdamW(fused)", own, reference, "<= 1.02")
        again, breaks = counters["stats"]["unique_graphs"] - graphs, sum(counters["graph_break"].values())
        self.report("recompilations, graph breaks of these steps", f"{again}, {breaks}", "-", "-", "0, 0")

    def cuda(self) -> None:
        """step() on large models, and the bytes it moves over what the device's memory can."""
        if self.args.device != "cuda":
            self.report("step() on ResNet-50 and a 124 M GPT, CUDA", "no GPU", "-", "-", "<= 0.8, >= 80 %")
            return
        tokens = torch.randint(50257, (1, 64), device="cuda")
        gpt = {"layers": 12, "width": 768, "heads": 12, "vocab_size": 50257, "context_length": 1024}
        models: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
            "ResNet-50": lambda: (torchvision.models.resnet50().cuda(), None),
            "GPT 124 M": lambda: (GPT(**gpt).cuda(), lambda m: m(tokens).square().mean()),  # type: ignore[arg-type]
        }
        x = torch.empty(2**28, device="cuda")
        peak = 2 * x.numel() * 4 / self._seconds_on_gpu(lambda: x.mul_(1.0), x)
        for name, make in models.items():
            reference = self.stepper(adamw(fused=True), *make())
            for rule, moved in (
                ("calibrated", 7),
                ("paper", 5),
            ):  # calibrated reads gradient and momentum twice
                own = self.stepper(adafisher(rule=rule, update_interval=NEVER), *make())
                what = f"step(), {name}, {rule}"
                self.compare(f"{what}, against AdamW(fused)", own.step, reference.step, "<= 0.8")
                seconds = self._seconds_on_gpu(own.step, x)
                ratio = seconds / self._seconds_on_gpu(reference.step, x)
                numbers = sum(p.numel() for group in own.param_groups for p in group["params"])
                share = 4 * moved * numbers / seconds / peak
                self.report(
                    f"{what}, on the GPU alone", f"{seconds * 1e3:.2f} ms", "-", f"{ratio:.3f}", "<= 0.8"
                )
                self.report(f"{what}, bytes a second over a copy's", f"{share:.0%}", "-", "-", ">= 80 %")

    def _seconds_on_gpu(self, function: Callable[[], Any], x: Tensor) -> float:
        """Median of the GPU's seconds, without the time that Python takes: it works first at something long."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times = []
        for _ in range(self.args.rounds):
            for _ in range(20):
                x.mul_(1.0)
            start.record()
            function()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return median(times)


class Activations:
    """The size of the largest input or output of any leaf module."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.largest = model, 0

    def __enter__(self) -> "Activations":
        self.handles = [
            m.register_forward_hook(self._see) for m in self.model.modules() if not [*m.children()]
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _see(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        self.largest = max(self.largest, *(t.numel() * t.element_size() for t in (args[0], out)))


class Allocations(TorchDispatchMode):
    """Follows the storages that operations make, and their peak in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, Any] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in known:
                storage = tensor.untyped_storage()
                self.live[storage.data_ptr()] = (
                    torch.multiprocessing.reductions.StorageWeakRef(storage),
                    len(storage),
                )
        self.live = {pointer: entry for pointer, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def temporary_bytes(function: Callable[[], Any]) -> int:
    with Allocations() as allocations:
        function()
    return allocations.peak


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(
        t.numel() * t.element_size()
        for t in tree_leaves([*optimizer.state.values()])
        if isinstance(t, Tensor)
    )


ROWS = (
    *("refresh", "checks", "memory", "eager", "compiled", "temporary"),
    *("state", "training", "compiled_model", "imagenet", "cuda"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    benchmark = Benchmark(args)
    for row in args.rows:
        getattr(benchmark, row)()
    Console(width=140).print(benchmark.table)


if __name__ == "__main__":
    main()
