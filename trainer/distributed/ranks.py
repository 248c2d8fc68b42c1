"""The processes of a run as ranks: who they are, what they exchange, how they end."""

import json
import os
import re
import secrets
import socket
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.distributed.failure_detector import FailureDetector, PeerConnection
from trainer.errors import UserError, one_line
from trainer.rundir.status import CRASHED

T = TypeVar("T")

RENDEZVOUS_TIMEOUT = 300.0
"""Seconds within which all ranks of a run must have started."""

PATH = "$path"


@dataclass(frozen=True)
class RankInfo:
    """A process among those of a run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among those of its node."""
    nodes: int = 1


def rank_info_from(environ: MutableMapping[str, str]) -> RankInfo | None:
    """The rank that torchrun or srun gave this process; None if it was started alone.

    Under srun MASTER_ADDR and MASTER_PORT are set, unless they are, to the first node of the step and to a port made
    from the number of the job, which a requeue keeps.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        world_size = int(environ["WORLD_SIZE"])
        nodes = world_size // int(environ.get("LOCAL_WORLD_SIZE", world_size))
        return RankInfo(int(environ["RANK"]), world_size, int(environ.get("LOCAL_RANK", 0)), nodes)
    if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # set by srun alone, not in the script of a batch job
        nodelist = environ.get("SLURM_STEP_NODELIST") or environ["SLURM_JOB_NODELIST"]
        environ.setdefault("MASTER_ADDR", first_host(nodelist))
        environ.setdefault("MASTER_PORT", str(10_000 + int(environ["SLURM_JOB_ID"]) % 20_000))
        return RankInfo(
            int(environ["SLURM_PROCID"]),
            int(environ["SLURM_STEP_NUM_TASKS"]),
            int(environ["SLURM_LOCALID"]),
            int(environ.get("SLURM_STEP_NUM_NODES", 1)),
        )
    return None


def first_host(nodelist: str) -> str:
    """The first of Slurm's hosts: ``node01`` of ``node[01-03,7],gpu5``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist)
    assert first is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


class Ranks:
    """The processes that train together, as one of them sees them. A single process is rank 0 of 1.

    Leaving the context says goodbye to the others; leaving it by an exception makes them end too.

    Args:
        info: this process's rank.
        store: shared by the ranks; None for a single process.
        connection: to the first rank, which detects failures; None for a single process.
        detector: the other end of all connections, on the first rank.
    """

    def __init__(
        self,
        info: RankInfo,
        store: dist.Store | None = None,
        connection: PeerConnection | None = None,
        detector: FailureDetector | None = None,
    ) -> None:
        self.rank, self.world_size, self.local_rank = info.rank, info.world_size, info.local_rank
        self.nodes = info.nodes
        self.is_rank0 = info.rank == 0
        self.store = store
        self.connection = connection
        self._detector = detector
        self._exchanges = 0

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(f"{type(error).__name__}: {one_line(error)}")
        elif self.connection:
            self.connection.close()
            if self._detector:  # the others would take the end of the first rank for a failure
                self._detector.join(RENDEZVOUS_TIMEOUT)
            if dist.is_initialized():
                dist.destroy_process_group()

    def start(self, device: torch.device, timeout: float) -> None:
        """Starts the process group, NCCL for GPUs, Gloo for CPUs, unless it runs already.

        Args:
            timeout: seconds after which a collective that some rank does not join fails.
        """
        assert self.store is not None
        if dist.is_initialized():
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self.store.set_timeout(timedelta(seconds=timeout))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=self.store,
            rank=self.rank,
            world_size=self.world_size,
            timeout=timedelta(seconds=timeout),
        )

    # Collectives: every rank calls them

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor's sum over all ranks, computed in place."""
        if dist.is_initialized():
            dist.all_reduce(tensor)
        return tensor

    def all_gather_object(self, value: T) -> list[T]:
        """Every rank's value, by rank; for small values and rare calls, as it goes through the first rank's store.

        It goes as JSON, since whoever reaches the store's port can write there: of plain values and paths, where a
        tuple becomes a list.
        """
        if self.store is None:
            return [value]
        self._exchanges += 1
        key = f"exchange/{self._exchanges}"
        self.store.set(f"{key}/{self.rank}", to_json(value))
        values = [from_json(self.store.get(f"{key}/{rank}")) for rank in range(self.world_size)]
        self.store.delete_key(f"exchange/{self._exchanges - 1}/{self.rank}")  # all have read the last ones
        return values

    def run_on_all(self, action: Callable[[], T]) -> T:
        """The result of an action on this rank, where it may fail on some of them.

        Raises:
            UserError: this rank's, or that of the first rank that failed with one.
        """
        result: Any = None
        mine: UserError | None = None
        try:
            result = action()
        except UserError as error:
            mine = error
        errors = self.all_gather_object(mine and str(mine))
        if mine:
            raise mine
        for rank, message in enumerate(errors):
            if message:
                raise UserError(f"rank {rank}: {message}")
        return result

    def run_on_rank0(self, action: Callable[[], T]) -> T:
        """The result of an action that the first rank does for all, as `all_gather_object` passes it on.

        Raises:
            UserError: the first rank's.
        """
        return self.all_gather_object(self.run_on_all(lambda: action() if self.is_rank0 else None))[0]  # type: ignore[return-value]

    # How they end

    def on_peer_failure(self, action: Callable[[str, int], None]) -> None:
        """Sets what the lowest rank that is alive does before another rank's failure ends it.

        Args:
            action: is given the cause and the exit code.
        """
        if self.connection:
            self.connection.on_verdict = action

    def fail(self, reason: str, code: int = CRASHED) -> str:
        """Ends all ranks, since this one fails; returns the cause: which rank failed first, and why.

        Args:
            reason: on one line.
            code: the exit code of those that end because of it.
        """
        return self.connection.fail(reason, code) if self.connection else reason


def to_json(value: Any) -> str:
    """A value as JSON; a path in it is an object with one key."""

    def encode(other: object) -> dict[str, str]:
        if not isinstance(other, Path):
            raise TypeError(f"ranks exchange plain values and paths, not {type(other).__name__}")
        return {PATH: str(other)}

    return json.dumps(value, default=encode)


def from_json(text: bytes) -> Any:
    """The value that `to_json` made text of.

    Raises:
        UserError: it is no JSON.
    """
    try:
        return json.loads(text, object_hook=lambda read: Path(read[PATH]) if read.keys() == {PATH} else read)
    except (ValueError, TypeError, RecursionError):
        raise UserError(
            "another program writes where the ranks meet: give them a MASTER_PORT of their own"
        ) from None


SINGLE_PROCESS = Ranks(RankInfo())


def join() -> Ranks:
    """This process as one of the ranks that torchrun or srun started, or as a single one.

    Raises:
        UserError: the others did not start in time.
    """
    info = rank_info_from(os.environ)
    if info is None:
        return SINGLE_PROCESS
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        timeout = timedelta(seconds=RENDEZVOUS_TIMEOUT)
        opened, _, _ = next(dist.rendezvous("env://", info.rank, info.world_size, timeout=timeout))
        store = dist.PrefixStore("trainer", opened)
        detector = None
        if info.rank == 0:
            token = secrets.token_hex()
            detector = FailureDetector(info.world_size, token)
            store.set("failure detector", to_json([detector.port, token]))
        port, token = from_json(store.get("failure detector"))
        host = "localhost" if detector else os.environ["MASTER_ADDR"]
        connection = PeerConnection(info.rank, host, port, token, RENDEZVOUS_TIMEOUT)
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"rank {info.rank} of {info.world_size} on {socket.gethostname()} did not find the others at "
            f"{where} within {RENDEZVOUS_TIMEOUT:.0f} s: {one_line(error)}"
        ) from None
    return Ranks(info, store, connection, detector)
