"""Tries every combination of strategy, precision, capture and compile: a table of what trains and what does not.

    python tests/distributed/combinations.py [--strategies none ddp fsdp hsdp] [--device cpu]

Each trains a small GPT for 21 steps, with three refreshes; it works if the loss falls and nothing is skipped.
"""

import argparse
import sys
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from tests.distributed.ranks import on_ranks
from tests.distributed.runs import parts_of, steps
from trainer.distributed.ranks import Ranks
from trainer.errors import one_line
from trainer.training.evaluation import evaluate

RANKS = {"none": 1, "ddp": 2, "fsdp": 2, "hsdp": 4}
PRECISIONS = ("fp32", "bf16", "fp16")
CAPTURES = ("hooks", "gradient")


def attempt(ranks: Ranks, strategy: str, precision: str, capture: str, compile: bool, device: str) -> str:
    """``works``, or what happened instead."""
    model = "model=gpt model.layers=2 model.width=32 model.heads=2"
    data = "data=synthetic_tokens data.batch_size=16 data.context_length=16 schedule=constant"
    options = f"parallel={strategy} precision={precision} optimizer.capture={capture} device={device}"
    copies = "parallel.replicas=2" if strategy == "hsdp" else ""
    line = f"{model} {data} {options} {copies} loop.compile={str(compile).lower()}".split()
    try:
        parts = parts_of(ranks, *line, dtype=torch.float32)
        first = evaluate(parts)["val/loss"]
        steps(parts, 21)
        last = evaluate(parts)["val/loss"]
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error)}"
    if parts.counters.skipped_steps > 2:  # fp16 may have to find its loss scale
        return f"{parts.counters.skipped_steps} steps skipped"
    return "works" if last < first else f"loss {first:.3f} -> {last:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--strategies", nargs="+", choices=RANKS, default=list(RANKS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    table = Table("strategy", "precision", "capture", "compile", "result")
    for strategy, precision, capture, compile in product(
        args.strategies, PRECISIONS, CAPTURES, (False, True)
    ):
        try:
            (found, *_) = on_ranks(
                RANKS[strategy], attempt, strategy, precision, capture, compile, args.device
            )
        except AssertionError as error:
            found = str(error)
        row = (strategy, precision, capture, str(compile).lower(), found)
        print(*row, flush=True)
        table.add_row(*row)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
