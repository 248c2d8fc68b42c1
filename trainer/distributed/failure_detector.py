"""How the ranks of a run end together: the death of any rank, however it dies, is detected by all others at once."""

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from trainer.rundir.status import CRASHED

GRACE = 1.0
"""Seconds from the first sign of a failure to the verdict on its cause, so that the signs of others count too."""

BYE = "bye"
SILENT = "exited without reporting an error (killed or out of memory)"


class PeerConnection:
    """A connection of this rank to the first one, watched by a thread of its own.

    The kernel closes connections however a process ends. The first rank sees which connection is closed, or is sent
    the reason of a failure, and sends all others the verdict; its own end closes their connections. A rank whose main
    thread waits in a collective for a dead one is ended by the watching thread.

    Args:
        rank: this process's.
        host, port: where the first rank's `FailureDetector` listens.
        timeout: seconds for the connection to be made.
    """

    def __init__(self, rank: int, host: str, port: int, timeout: float) -> None:
        self.rank = rank
        self.on_verdict: Callable[[str], None] = print_verdict
        """Called on the lowest rank that is alive when another rank's failure ends this process."""
        self._verdict, self._reporting_rank = "", 0
        self._known = threading.Event()
        self._ending = threading.Lock()
        self._main_thread_ends = self._closed = False
        self._socket = socket.create_connection((host, port), timeout)
        self._socket.settimeout(None)
        close_in_forked_children(self._socket)
        send(self._socket, str(rank))
        threading.Thread(target=self._listen, name="peer connection", daemon=True).start()

    def fail(self, reason: str) -> str:
        """Sends the reason why this rank fails to the others; returns which rank failed first, and why."""
        with self._ending:  # a watching thread that ends the process never releases it
            self._main_thread_ends = True
        send(self._socket, f"failed {reason}")
        self._known.wait(5 * GRACE)
        if self._reporting_rank == self.rank != 0:  # the first rank is gone, and this one fails because of it
            self.on_verdict(self._verdict)
        return self._verdict or f"rank {self.rank}: {reason}"

    def close(self) -> None:
        """Says goodbye: that this connection ends is no failure."""
        self._closed = True
        send(self._socket, BYE)

    def _listen(self) -> None:
        verdict = receive(self._socket)
        if not verdict and self._closed:
            return
        self._verdict, self._reporting_rank = (verdict, 0) if verdict else (f"rank 0 {SILENT}", 1)
        self._known.set()
        with self._ending:
            if not self._main_thread_ends:
                self._end()

    def _end(self) -> NoReturn:
        try:
            if self.rank == self._reporting_rank:
                self.on_verdict(self._verdict)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(CRASHED)


def print_verdict(verdict: str) -> None:
    """Prints which rank failed first, and why."""
    print(f"crashed: {verdict}", file=sys.stderr)


class FailureDetector:
    """The first rank's end of all connections, in a thread that ends when all ranks have said goodbye.

    Args:
        count: how many ranks there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._server = socket.create_server(("", 0), backlog=count)
        close_in_forked_children(self._server)
        self.port: int = self._server.getsockname()[1]
        self._ranks: dict[socket.socket, int] = {}
        self._left: set[int] = set()
        self._signs: dict[int, str] = {}
        self._thread = threading.Thread(target=self._watch, name="failure detector", daemon=True)
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Waits at most that many seconds until all ranks have said goodbye."""
        self._thread.join(timeout)

    def _watch(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._server, selectors.EVENT_READ)
        verdict_at = float("inf")
        while len(self._left) < self.count and time.monotonic() < verdict_at:
            for key, _ in selector.select(0.1 if self._signs else None):
                if key.fileobj is self._server:
                    peer, _ = self._server.accept()
                    close_in_forked_children(peer)
                    self._ranks[peer] = int(receive(peer))
                    selector.register(peer, selectors.EVENT_READ)
                elif self._hear(key.fileobj):  # type: ignore[arg-type]
                    selector.unregister(key.fileobj)
            if self._signs:
                verdict_at = min(verdict_at, time.monotonic() + GRACE)
        if self._signs:
            self._send_verdict()

    def _hear(self, peer: socket.socket) -> bool:
        """Notes what a rank has sent; returns whether it is gone."""
        rank, text = self._ranks[peer], receive(peer)
        if text.startswith("failed "):
            self._signs.setdefault(rank, f": {text.removeprefix('failed ')}")
            return False
        if text != BYE and rank not in self._signs:
            self._signs[rank] = f" {SILENT}"
        self._left.add(rank)
        return True

    def _send_verdict(self) -> None:
        """A rank that vanished is the cause of the others' failures; without one it is the first that failed."""
        vanished = [rank for rank, sign in self._signs.items() if sign.endswith(SILENT)]
        rank = (vanished or list(self._signs))[0]
        # the first rank is the last to receive it: its process ends with it, and this thread with the process
        for peer in sorted(self._ranks, key=self._ranks.__getitem__, reverse=True):
            send(peer, f"rank {rank}{self._signs[rank]}")


def send(peer: socket.socket, line: str) -> None:
    """Sends a line, if the other end is still there."""
    with contextlib.suppress(OSError):  # if it is not, receiving from it will say so
        peer.sendall(f"{line}\n".encode())


def receive(peer: socket.socket) -> str:
    """The next line; an empty one if the other end is gone."""
    text = b""
    try:
        while not text.endswith(b"\n"):
            byte = peer.recv(1)
            if not byte:
                return ""
            text += byte
    except OSError:
        return ""
    return text.decode(errors="replace").strip()


def close_in_forked_children(connection: socket.socket) -> None:
    """Closes a connection in forked data workers, which would hold it open; detects a lost machine in half a minute."""
    os.register_at_fork(after_in_child=connection.close)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
