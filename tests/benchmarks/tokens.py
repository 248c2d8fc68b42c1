"""Tokens per second of data=tokens against the package datasets with torch's DataLoader.

All read the same made-up tokens from the disk in one process and thread, shuffled, in batches on the CPU. datasets has
them as rows of context_length + 1 numbers in an Arrow file, which it maps into memory: as torch tensors that DataLoader
stacks by itself, and as NumPy arrays stacked at once, the quickest way. They take turns; rates are of CPU time,
ratios medians over rounds. Also shown: seconds until the first batch, and by how much the process grows.

    python tests/benchmarks/tokens.py [--tokens 50000000] [--context-length 1024] [--batch-size 32] [--rounds 7]
"""

import argparse
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from trainer.data import DATA, LoaderOptions, TrainLoader
from trainer.data.shards import Manifest, shard_path

VOCABULARY = 50_000
SHARD = 2**24


def write_shards(folder: Path, tokens: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    sizes = [min(SHARD, tokens - start) for start in range(0, tokens, SHARD)]
    for number, size in enumerate(sizes):
        rng.integers(VOCABULARY, size=size, dtype=np.uint16).tofile(shard_path(folder, number))
    manifest = {
        "tokens": tokens,
        "documents": 1,
        "shard_tokens": SHARD,
        "dtype": "<u2",
        "vocab_size": VOCABULARY,
        "end_token": 0,
        "tokenizer": "bytes",
        "tokenizer_hash": "",
        "checksums": [""] * len(sizes),
        "identity": "",
    }
    Manifest(**manifest).write(folder)  # type: ignore[arg-type]


def write_arrow(folder: Path, shards: Path, tokens: int, length: int) -> None:
    from datasets import Dataset, Features, Sequence, Value

    parts = [np.fromfile(path, dtype=np.uint16) for path in sorted(shards.glob("shard_*"))]
    rows = np.concatenate(parts)[: tokens // (length + 1) * (length + 1)].reshape(-1, length + 1)
    features = Features({"tokens": Sequence(Value("uint16"), length=length + 1)})
    Dataset.from_dict({"tokens": rows}, features=features).save_to_disk(str(folder))


def ours(folder: Path, length: int, batch_size: int) -> Iterator[Any]:
    config = DATA.check({"name": "tokens", "path": str(folder), "context_length": length})
    data = DATA.build(config, torch.device("cpu"), 0)
    loader = TrainLoader(data.train, LoaderOptions(batch_size=batch_size), seed=0)
    while True:
        yield loader.next_batch()[0]


def theirs(folder: Path, batch_size: int, form: str) -> Iterator[Any]:
    from datasets import load_from_disk
    from torch.utils.data import DataLoader, default_collate

    def stack(rows: list[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = default_collate(rows)["tokens"].long()
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def stack_arrays(rows: list[dict[str, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.from_numpy(np.stack([row["tokens"] for row in rows]).astype(np.int64))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    rows = load_from_disk(str(folder)).with_format(form)
    collate = stack_arrays if form == "numpy" else stack
    while True:
        yield from DataLoader(rows, batch_size, shuffle=True, drop_last=True, collate_fn=collate)


def first_batch(make: Callable[[], Iterator[Any]]) -> tuple[Iterator[Any], float]:
    start = time.perf_counter()
    batches = make()
    next(batches)
    return batches, time.perf_counter() - start


def rate(batches: Iterator[Any], count: int) -> float:
    start, tokens = time.process_time(), 0
    for _ in range(count):
        tokens += next(batches)[0].numel()
    return tokens / (time.process_time() - start)


def growth(make: Callable[[], Iterator[Any]], count: int) -> float:
    """MiB that the peak memory of a process grows by, from the imports to the last of that many batches."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rate(make(), count)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(writer, str(grown).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    return int(os.read(reader, 100)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=50_000_000)
    parser.add_argument("--context-length", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=100, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as root:
        shards, arrow = Path(root, "shards"), Path(root, "arrow")
        write_shards(shards, options.tokens)
        write_arrow(arrow, shards, options.tokens, options.context_length)
        sizes = (options.context_length, options.batch_size)
        makers = {
            "data=tokens": lambda: ours(shards, *sizes),
            "datasets, tensors": lambda: theirs(arrow, options.batch_size, "torch"),
            "datasets, arrays": lambda: theirs(arrow, options.batch_size, "numpy"),
        }
        grown = {name: growth(make, options.batches * options.rounds) for name, make in makers.items()}
        started = {name: first_batch(make) for name, make in makers.items()}
        rates: dict[str, list[float]] = {name: [] for name in makers}
        for _ in range(options.rounds):
            for name, (batches, _) in started.items():
                rates[name].append(rate(batches, options.batches))
    table = Table("", "M tokens/s", "ratio", "first batch, s", "grows by, MiB")
    own = next(iter(rates.values()))
    for name in makers:
        ratios = [a / b for a, b in zip(own, rates[name], strict=True)]
        ratio = f"{median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
        speed, seconds = f"{median(rates[name]) / 1e6:.1f}", f"{started[name][1]:.3f}"
        table.add_row(name, speed, ratio, seconds, f"{grown[name]:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
