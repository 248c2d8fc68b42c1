"""Starts ranks on this machine: functions to be compared, or the trainer as a user starts it.

One rank, too, is a process of its own: what it registers does not reach other tests.
"""

import os
import pickle
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from tests.forks import FORKS
from trainer.cli.train import main
from trainer.distributed.ranks import Ranks, join

LIMIT = 120.0
"""Seconds after which ranks that have not ended are killed, and the test fails."""


def on_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(ranks, *arguments)`` returns on each of so many ranks."""
    pipes = [FORKS.Pipe(duplex=False) for _ in range(world_size)]
    environs = environments(world_size)
    processes = [
        FORKS.Process(target=_call, args=(environ, function, arguments, writer), daemon=True)
        for environ, (_, writer) in zip(environs, pipes, strict=True)
    ]
    for process, (_, writer) in zip(processes, pipes, strict=True):
        process.start()
        writer.close()
    deadline = time.monotonic() + LIMIT
    results = []
    for reader, _ in pipes:
        try:
            there = reader.poll(max(0, deadline - time.monotonic()))
            results.append(pickle.loads(reader.recv_bytes()) if there else None)
        except EOFError:
            results.append(None)
    codes = end(processes, deadline)
    assert codes == [0] * world_size, f"exit codes {codes}"
    return results


def start_trainer(
    world_size: int, overrides: Sequence[str], log: Path | None = None, **environ: str
) -> list[BaseProcess]:
    """``python -m trainer`` on so many ranks; all they print goes to ``log`` with the rank's number behind."""
    processes = []
    for rank, own in enumerate(environments(world_size)):
        file = f"{log}{rank}" if log else os.devnull
        processes.append(FORKS.Process(target=_train, args=({**own, **environ}, list(overrides), file)))
    for process in processes:
        process.start()
    return processes


def train(world_size: int, overrides: Sequence[str], log: Path | None = None, **environ: str) -> list[int]:
    """As `start_trainer`; waits for the end and returns the exit codes."""
    return end(start_trainer(world_size, overrides, log, **environ))


def end(processes: Sequence[BaseProcess], deadline: float | None = None) -> list[int]:
    """Exit codes; whoever has not ended in time is killed."""
    deadline = deadline or time.monotonic() + LIMIT
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return [int(process.exitcode or 0) for process in processes]


def environments(world_size: int) -> list[dict[str, str]]:
    """What torchrun would set; for one rank nothing."""
    if world_size == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]


def _call(
    environ: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...], writer: Connection
) -> None:
    torch.set_num_threads(1)
    os.environ |= environ
    ranks: Ranks
    with join() as ranks:
        writer.send_bytes(pickle.dumps(function(ranks, *arguments)))


def _train(environ: dict[str, str], overrides: list[str], log: str) -> None:
    torch.set_num_threads(1)
    os.environ |= environ
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.exit(main(overrides))
