"""What a training step with AdaFisher takes on several ranks, against one with AdamW.

    python tests/benchmarks/distributed.py [--ranks 2] [--strategies ddp fsdp] [--widths 64 128 256] [--rounds 9]
    python tests/benchmarks/distributed.py --device cuda --ranks 1 --precision bf16 --widths 768 --layers 12 \
        --batch 32 --context 512

GPTs of several widths train on made-up tokens, on CPUs over Gloo or on GPUs over NCCL. The optimizers take turns
within one process, ten steps at a time, of which AdaFisher refreshes its factors in one; the figures are medians over
the rounds, and the median of the ratios within a round. On a machine with other work to do they say nothing.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from tests.distributed.ranks import on_ranks
from tests.distributed.runs import parts_of, steps
from trainer.distributed.ranks import Ranks

STEPS = 10
"""A refresh interval of AdaFisher's default rule."""

Seconds = list[tuple[float, float]]


def measure(ranks: Ranks, strategy: str, width: int, args: argparse.Namespace) -> tuple[int, Seconds]:
    """Parameters, and seconds a step with AdaFisher and with AdamW in each round."""
    torch.set_num_threads(args.threads)
    model = f"model=gpt model.layers={args.layers} model.width={width} model.heads=4"
    data = f"data=synthetic_tokens data.batch_size={args.batch} data.context_length={args.context}"
    options = f"schedule=constant parallel={strategy} precision={args.precision} device={args.device}"
    line = f"{model} {data} {options}".split()
    contenders = [
        parts_of(ranks, *line, f"optimizer={name}", dtype=torch.float32)
        for name in ("adafisher_calibrated", "adamw")
    ]
    rounds = []
    for _ in range(args.rounds + 1):
        times = []
        for parts in contenders:
            _wait(args.device)
            start = time.perf_counter()
            steps(parts, STEPS)
            _wait(args.device)
            times.append((time.perf_counter() - start) / STEPS)
        rounds.append((times[0], times[1]))
    return sum(p.numel() for p in contenders[0].model.parameters()), rounds[1:]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each rank")
    parser.add_argument("--strategies", nargs="+", default=["ddp", "fsdp"])
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16, help="samples a step, over all ranks")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    table = Table(
        title=f"{args.device}, {args.precision}, {args.ranks} ranks, milliseconds a step, medians of {args.rounds}"
    )
    for column in ("strategy", "width", "parameters", "AdaFisher", "AdamW", "ratio"):
        table.add_column(column, justify="right")
    for strategy in args.strategies:
        for width in args.widths:
            parameters, rounds = on_ranks(args.ranks, measure, strategy, width, args)[0]
            own, reference = (median(column) * 1e3 for column in zip(*rounds, strict=True))
            ratio = median(a / b for a, b in rounds)
            figures = (f"{own:.1f}", f"{reference:.1f}", f"{ratio:.3f}")
            table.add_row(strategy, str(width), f"{parameters:,}", *figures)
    Console().print(table)


if __name__ == "__main__":
    main()
