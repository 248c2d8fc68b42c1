"""Peak memory and CPU time of a GPT's training step with its logits at once and in pieces (loop.loss_chunks).

Each contender takes its steps in a process of its own, so that its peak is its own; they take turns. The C library is
told to give freed tensors back at once: by itself it may keep as much as it saves.

    python tests/benchmarks/loss.py [--vocabulary 50257] [--batch-size 4] [--context-length 512] [--rounds 3]
"""

import argparse
import ctypes
import os
import resource
import time
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from trainer.models import MODELS
from trainer.objectives.next_token import NextToken

STEPS = 2
M_MMAP_THRESHOLD = -3
"""Of glibc's mallopt: what is larger is mapped by itself."""


def measure(chunks: str, options: argparse.Namespace) -> tuple[float, float]:
    """MiB by which the peak of a process grows within its steps, and CPU seconds of a step."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, " ".join(map(str, steps(chunks, options))).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    grown, seconds = os.read(reader, 100).split()
    return float(grown), float(seconds)


def steps(chunks: str, options: argparse.Namespace) -> tuple[float, float]:
    length, vocabulary = options.context_length, options.vocabulary
    sizes = {"layers": 2, "width": options.width, "vocab_size": vocabulary, "context_length": length}
    model = MODELS.build(MODELS.check({"name": "gpt", **sizes}))
    tokens = torch.randint(vocabulary, (options.batch_size, length))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for _ in range(STEPS):
        model.zero_grad()
        objective = NextToken(loss_chunks="auto" if chunks == "auto" else int(chunks))
        objective.loss(model, (tokens, tokens))[0].backward()
    seconds = (time.process_time() - start) / STEPS
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--context-length", type=int, default=512)
    parser.add_argument("--chunks", nargs="+", default=["1", "4", "16", "auto"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    found = [[measure(chunks, options) for chunks in options.chunks] for _ in range(options.rounds)]
    logits = 4 * options.batch_size * options.context_length * options.vocabulary / 2**20
    table = Table(
        "loss_chunks", "peak grows by, MiB", "CPU s a step", title=f"logits of a batch: {logits:.0f} MiB"
    )
    for place, chunks in enumerate(options.chunks):
        grown, seconds = (median(row[place][what] for row in found) for what in (0, 1))
        table.add_row(chunks, f"{grown:.0f}", f"{seconds:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
