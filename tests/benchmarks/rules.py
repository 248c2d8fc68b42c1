"""AdaFisher's four rules against AdamW, SGD and Muon on small tasks, at equal steps and at equal seconds.

    python tests/benchmarks/rules.py --text tinyshakespeare.txt

Every contender tunes its learning rate over the same number of trials (seed 0), and its best rate then runs with
fresh seeds, first for the same number of steps, then for the seconds that AdamW took. Each finished run is a line of
``--out``: started again, the script goes on where it stopped. ``--variants`` runs a rule with other options at its
best rate. Seconds are CPU seconds of one thread, in training alone. Muon's AdamW has the rate of Muon's
own; with momentum 0.9 it is a contender of its own, and so it is with that, queries, keys and values taken apart, and
the output layer orthogonalised, too. A second table has the differences to Muon, paired by seed.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from tests.benchmarks.tasks import TASKS
from trainer.optim import OPTIMIZERS, AdaFisher, param_groups
from trainer.optim.adafisher.rules import RULES
from trainer.report.statistics import mean_interval

Run = dict[str, Any]
"""One training run: task, contender, lr, seed, steps, options; and once it is done, metric and seconds."""

RATES = {
    "calibrated": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
    "orthogonal": [3e-3, 6e-3, 1e-2, 2e-2, 4e-2],
    "paper": [1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
    "released": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "adamw": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "sgd": [3e-2, 1e-1, 3e-1, 1.0, 3.0],
    "muon": [3e-3, 6e-3, 1e-2, 2e-2, 4e-2],
    "muon, momentum 0.9": [3e-3, 6e-3, 1e-2, 2e-2, 4e-2],
    "muon, helped": [3e-3, 6e-3, 1e-2, 2e-2, 4e-2],
}
OPTIONS: dict[str, Run] = {
    "muon, momentum 0.9": {"momentum": 0.9},
    "muon, helped": {"momentum": 0.9, "split_qkv": True, "output_layer": True},
}
VARIANTS: dict[str, list[Run]] = {
    "calibrated": [
        {"damping": 0.003},
        {"damping": 0.03},
        {"damping": 0.1},
        {"gamma": 0.8},
        {"gamma": 0.98},
        {"update_interval": 1},
        {"update_interval": 5},
        {"update_interval": 50},
        {"momentum": 0.85},
        {"momentum": 0.95},
        {"capture": "gradient"},
    ],
    "orthogonal": [
        {"momentum": 0.85},
        {"momentum": 0.95},
        {"roles": {"*.*.weight": 64}},
        {"roles": {"*.*.weight": "whole"}},
        {"update_interval": 50},
        {"capture": "gradient"},
    ],
}
"""Options of a rule; ``*.*.weight`` are the matrices of all tasks but for embeddings."""


def optimizer_of(model: nn.Module, run: Run, weight_decay: float) -> torch.optim.Optimizer:
    name, options = run["contender"], {**OPTIONS.get(run["contender"], {}), **run["options"]}
    if name in RULES:
        kind = {"decoupled": True, "rule": name, "weight_decay": weight_decay}
        return AdaFisher(model, lr=run["lr"], **{**kind, **options})
    if name == "sgd":
        options = {"momentum": 0.9, "weight_decay": 5e-4, **options}
    else:
        options = {"weight_decay": weight_decay, **options}
    return OPTIMIZERS.get(name.partition(",")[0]).target(
        model, param_groups(model, True), lr=run["lr"], **options
    )


def train(run: Run, text: str | None) -> Run:
    """Trains with a warm-up over a tenth of the steps and a cosine over the rest."""
    torch.set_num_threads(1)
    task = TASKS[run["task"]](text or "")
    torch.manual_seed(run["seed"])
    generator = torch.Generator().manual_seed(run["seed"])
    model = task.model()
    optimizer = optimizer_of(model, run, task.weight_decay)
    rates = [group["lr"] for group in optimizer.param_groups]
    steps, warmup = run["steps"], max(1, run["steps"] // 10)
    started = time.process_time()
    for step in range(steps):
        progress = (step - warmup) / (steps - warmup)
        factor = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * progress))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        x, y = task.batch(generator)
        optimizer.zero_grad()
        task.loss(model(x), y).backward()
        if task.clip < math.inf:
            nn.utils.clip_grad_norm_(model.parameters(), task.clip)
        optimizer.step()
    seconds = time.process_time() - started
    model.eval()
    with torch.no_grad():
        metric = task.evaluate(model)
    return {**run, "metric": metric, "seconds": seconds}


class Study:
    """The runs of one file."""

    train = staticmethod(train)
    """Makes a run of what describes it and the path of the text."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.done: dict[str, Run] = {}
        if args.out.exists():
            for line in args.out.read_text().splitlines():
                run = json.loads(line)
                self.done[self._key(run)] = run

    @staticmethod
    def _key(run: Run) -> str:
        return json.dumps({k: v for k, v in run.items() if k not in ("metric", "seconds")}, sort_keys=True)

    def complete(self, runs: list[Run]) -> None:
        missing = [run for run in runs if self._key(run) not in self.done]
        missing.sort(key=lambda run: (run["task"], run["seed"]))  # contenders take turns
        with ProcessPoolExecutor(self.args.processes) as pool:
            for future in as_completed(pool.submit(self.train, run, self.args.text) for run in missing):
                run = future.result()
                self.done[self._key(run)] = run
                with self.args.out.open("a") as file:
                    file.write(json.dumps(run) + "\n")

    def of(self, runs: list[Run]) -> list[Run]:
        return [self.done[self._key(run)] for run in runs if self._key(run) in self.done]

    def tuning(self, task: str, contender: str) -> list[Run]:
        return [self._run(task, contender, lr, 0) for lr in self.args.rates or RATES[contender]]

    def best_rate(self, task: str, contender: str) -> float | None:
        runs = [r for r in self.of(self.tuning(task, contender)) if not math.isnan(r["metric"])]
        sign = 1 if TASKS[task](self.args.text).lower_is_better else -1
        return min(runs, key=lambda run: sign * run["metric"])["lr"] if runs else None

    def seeds(
        self, task: str, contender: str, options: Run | None = None, seeds: int | None = None
    ) -> list[Run]:
        rate = self.best_rate(task, contender)
        count = range(1, 1 + (seeds or self.args.seeds))
        return [self._run(task, contender, rate, s, options) for s in count] if rate else []

    def timed(self, task: str, contender: str) -> list[Run]:
        """The same for as many steps as fit into the seconds that AdamW took."""
        own, reference = (self.of(self.seeds(task, name)) for name in (contender, "adamw"))
        if not own or not reference:
            return []
        ratio = mean(r["seconds"] for r in reference) / mean(r["seconds"] for r in own)
        steps = round(self._steps(task) * ratio / 10) * 10
        return [{**run, "steps": steps} for run in self.seeds(task, contender)]

    def _steps(self, task: str) -> int:
        return self.args.steps or TASKS[task](self.args.text).steps

    def _run(self, task: str, contender: str, lr: float, seed: int, options: Run | None = None) -> Run:
        run = {"task": task, "contender": contender, "lr": lr, "seed": seed, "steps": self._steps(task)}
        return {**run, "options": options or {}}


def near_best(tried: list[Run], lower_is_better: bool) -> int:
    """How many of the rates that were tried lead to a metric within 1 % of the best one."""
    metrics = [run["metric"] for run in tried if not math.isnan(run["metric"])]
    best = (min if lower_is_better else max)(metrics)
    return sum(abs(metric - best) <= 0.01 * best for metric in metrics)


def summary(runs: list[Run]) -> str:
    values = [run["metric"] for run in runs]
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}" if values else "–"


def difference(ours: list[Run], theirs: list[Run]) -> str:
    """The mean difference of runs with the same seeds, and its 95 % interval."""
    of_seed = {run["seed"]: run["metric"] for run in theirs}
    found = [run["metric"] - of_seed[run["seed"]] for run in ours if run["seed"] in of_seed]
    if len(found) < 2:
        return "–"
    interval = mean_interval(found)
    return f"{interval.mean:+.3f} ± {interval.half:.3f} ({len(found)})"


def differences(study: Study) -> Table:
    """Every contender against each row of Muon, at equal steps."""
    table = Table(title="differences at equal steps, with 95 % intervals, paired by seed (seeds)")
    opponents = [name for name in RATES if name.startswith("muon")]
    for column in ("task", "contender", *(f"against {name}" for name in opponents)):
        table.add_column(column)
    for task in study.args.tasks:
        runs = {name: study.of(study.seeds(task, name)) for name in RATES}
        for name in RATES:
            if runs[name] and name not in opponents:
                table.add_row(task, name, *(difference(runs[name], runs[other]) for other in opponents))
    return table


def tables(study: Study) -> Iterator[Table]:
    for task in study.args.tasks:
        definition = TASKS[task](study.args.text)
        table = Table(title=f"{task}: {definition.metric}, mean ± standard deviation over seeds")
        for column in (
            "contender",
            "rates tried: metric",
            "best",
            "within 1 %",
            "equal steps",
            "seconds",
            "equal seconds",
            "steps",
        ):
            table.add_column(column)
        for contender in RATES:
            tried = study.of(study.tuning(task, contender))
            runs = study.of(study.seeds(task, contender))
            timed = study.of(study.timed(task, contender))
            table.add_row(
                contender,
                ", ".join(f"{run['lr']:g}: {run['metric']:.3f}" for run in tried),
                f"{study.best_rate(task, contender)}",
                str(near_best(tried, definition.lower_is_better)) if tried else "–",
                summary(runs),
                f"{mean(run['seconds'] for run in runs):.1f}" if runs else "–",
                summary(timed),
                str(timed[0]["steps"]) if timed else "–",
            )
        for rule in VARIANTS:
            for variant in VARIANTS[rule]:
                if runs := study.of(study.seeds(task, rule, variant)):
                    name = ", ".join(f"{k}={v}" for k, v in variant.items())
                    seconds = f"{mean(run['seconds'] for run in runs):.1f}"
                    table.add_row(
                        f"{rule} {name}", "", "", "", f"{summary(runs)} ({len(runs)})", seconds, "", ""
                    )
        yield table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", help="a text file, for the task 'text'")
    parser.add_argument("--out", type=Path, default=Path("outputs/rules.jsonl"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["text", "images", "autoencoder"])
    parser.add_argument("--contenders", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--rates", nargs="+", type=float, help="rates to try instead of each contender's own")
    parser.add_argument("--steps", type=int, help="steps of a run instead of the task's own number")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--variants", choices=VARIANTS, help="also run this rule with other options")
    parser.add_argument("--only-table", action="store_true", help="print what is in the file")
    args = parser.parse_args()
    if not args.text and any("text" in task for task in args.tasks):
        parser.error("--text PATH is needed for tasks on text")
    study = Study(args)
    if not args.only_table:
        pairs = [(task, contender) for task in args.tasks for contender in args.contenders]
        study.complete([run for pair in pairs for run in study.tuning(*pair)])
        study.complete([run for pair in pairs for run in study.seeds(*pair)])
        if args.variants:
            options = [(task, variant) for variant in VARIANTS[args.variants] for task in args.tasks]
            study.complete([r for task, v in options for r in study.seeds(task, args.variants, v)])
        study.complete([run for pair in pairs for run in study.timed(*pair)])
    for table in (*tables(study), differences(study)):
        Console(width=160).print(table)


if __name__ == "__main__":
    main()
