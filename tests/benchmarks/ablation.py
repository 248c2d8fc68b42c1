"""What carries AdaFisher's calibrated rule: the rule with one of its parts taken away, on tasks of `tasks.py`.

    python tests/benchmarks/ablation.py --text tinyshakespeare.txt

Each variant tries the same number of rates with seed 0, and its best one then runs with fresh seeds, all for the same
number of steps. Each finished run is a line of ``--out``: started again, the script goes on where it stopped.
"""

import argparse
from collections import ChainMap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from rules import Run, Study, difference, summary, train
from tasks import TASKS
from torch import nn

from trainer.optim.adafisher.layers import LAYERS, Layer
from trainer.optim.adafisher.rules import RULES, Rule
from trainer.optim.adafisher.vectors import Vectors

CALIBRATED = RULES["calibrated"]
NORMS = [kind for kind in LAYERS if isinstance(kind, type) and "Norm" in kind.__name__]

Normalize = Callable[[Vectors, Vectors], None]


def without_H(H: Vectors, S: Vectors) -> None:
    """H' = 1."""
    CALIBRATED.normalize(H, S)
    H.flat.fill_(1)


def without_S(H: Vectors, S: Vectors) -> None:
    """S' is its mean, which is one but where a parameter has several uses."""
    CALIBRATED.normalize(H, S)
    S.flat.copy_(S.repeat(S.reduce("mean")))


def without_both(H: Vectors, S: Vectors) -> None:
    """F = 1: the momentum alone, at its normalised length."""
    without_S(H, S)
    H.flat.fill_(1)


def rooted(H: Vectors, S: Vectors) -> None:
    """√H and √S over their means: √F, or the sum of the roots where a parameter has several uses."""
    H.flat.sqrt_()
    S.flat.sqrt_()
    CALIBRATED.normalize(H, S)


def flat_norm(module: nn.Module) -> Layer:
    """A norm whose channels all have the mean of their curvature."""
    layer = LAYERS[type(module)](module)
    assert layer is not None
    return replace(
        layer,
        H=lambda x, output: torch.full_like(H := layer.H(x, output), H.mean()),
        S=lambda s: torch.full_like(S := layer.S(s), S.mean()),
    )


def normalized_by(normalize: Normalize) -> Rule:
    return replace(CALIBRATED, normalize=normalize)


VARIANTS: dict[str, tuple[Rule, dict[str, str]]] = {
    "calibrated": (CALIBRATED, {}),
    "no H (H' = 1)": (normalized_by(without_H), {}),
    "no S (S' = 1)": (normalized_by(without_S), {}),
    "neither (F = 1)": (normalized_by(without_both), {}),
    "root of F": (normalized_by(rooted), {}),
    "min-max instead of mean": (normalized_by(RULES["paper"].normalize), {}),
    "no averages (γ = 0)": (replace(CALIBRATED, gamma=0.0), {}),
    "norm layers without curvature": (
        replace(CALIBRATED, layers=ChainMap(dict.fromkeys(NORMS, flat_norm), LAYERS)),
        {},
    ),
    "factors of the gradient": (CALIBRATED, {"capture": "gradient"}),
    "no length of its own": (replace(CALIBRATED, normalize_update=False), {}),
}
"""Each variant's rule in place of the calibrated one, and options of the optimizer."""

RATES = {"text": [3e-3, 1e-2, 3e-2], "images": [3e-2, 1e-1, 3e-1]}
RATES_OF_LENGTH = {"text": [3e-2, 1e-1, 3e-1], "images": [3e-2, 1e-1, 3e-1]}
"""Where a step is as long as the gradient makes it."""


def train_variant(run: Run, text: str | None) -> Run:
    """Trains with the variant's rule in the place of the calibrated one."""
    rule, options = VARIANTS[run["contender"]]
    with patch.dict(RULES, calibrated=rule):
        done = train({**run, "contender": "calibrated", "options": options}, text)
    return {**run, "metric": done["metric"], "seconds": done["seconds"]}


class Ablation(Study):
    """The runs of all variants in one file."""

    train = staticmethod(train_variant)

    def tuning(self, task: str, contender: str) -> list[Run]:
        rates = RATES if VARIANTS[contender][0].normalize_update else RATES_OF_LENGTH
        return [self._run(task, contender, lr, 0) for lr in rates[task]]


def table(study: Ablation, task: str) -> Table:
    """Every variant's rates, result, and difference from the calibrated rule, paired by seed."""
    found = Table(title=f"{task}: {TASKS[task](study.args.text).metric}, mean ± standard deviation")
    for head in ("variant", "rates tried: metric", "best", "with fresh seeds", "minus calibrated (seeds)"):
        found.add_column(head)
    whole = study.of(study.seeds(task, "calibrated"))
    for name in VARIANTS:
        tried = [f"{run['lr']:g}: {run['metric']:.3f}" for run in study.of(study.tuning(task, name))]
        runs = study.of(study.seeds(task, name))
        best = study.best_rate(task, name)
        found.add_row(name, ", ".join(tried), f"{best}", summary(runs), difference(runs, whole))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", help="a text file, for the task 'text'")
    parser.add_argument("--out", type=Path, default=Path("outputs/ablation.jsonl"))
    parser.add_argument("--tasks", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only-table", action="store_true", help="print what is in the file")
    args = parser.parse_args()
    if "text" in args.tasks and not args.text:
        parser.error("--text PATH is needed for the task 'text'")
    study = Ablation(args)
    pairs = [(task, name) for task in args.tasks for name in VARIANTS]
    if not args.only_table:
        study.complete([run for pair in pairs for run in study.tuning(*pair)])
        study.complete([run for pair in pairs for run in study.seeds(*pair)])
    for task in args.tasks:
        Console(width=160).print(table(study, task))


if __name__ == "__main__":
    main()
