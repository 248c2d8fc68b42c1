"""How the ranks of a run end together: the death of any rank, however it dies, is detected by all others at once."""

import contextlib
import hmac
import os
import selectors
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import NoReturn

from trainer.rundir.status import CRASHED, USER_ERROR
from trainer.streams import print_if_read

GRACE = 1.0
"""Seconds from the first sign of a failure to the verdict on its cause, so that the signs of others count too."""

GREETING_SECONDS = 30.0
"""How long a connection may stay silent before it says which rank it is."""

MAX_LINE = 2**16
"""Bytes of a line; what is longer is cut by those who send it, and not believed by those who hear it."""

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
        token: the detector's, by which it knows that this is a rank of the run.
        timeout: seconds for the connection to be made.
    """

    def __init__(self, rank: int, host: str, port: int, token: str, timeout: float) -> None:
        self.rank = rank
        self.on_verdict: Callable[[str, int], None] = print_verdict
        """Called, with the exit code too, on the lowest rank that is alive when another's failure ends this process."""
        self._verdict, self._code, self._reporting_rank = "", CRASHED, 0
        self._known = threading.Event()
        self._ending = threading.Lock()
        self._main_thread_ends = self._closed = False
        self._socket = socket.create_connection((host, port), timeout)
        self._socket.settimeout(None)
        close_in_forked_children(self._socket)
        send(self._socket, f"{token} {rank}")
        threading.Thread(target=self._listen, name="peer connection", daemon=True).start()

    def fail(self, reason: str, code: int = CRASHED) -> str:
        """Ends all other ranks, since this one fails; returns which rank failed first, and why.

        Args:
            reason: on one line.
            code: the exit code of those that end because of it.
        """
        with self._ending:  # a watching thread that ends the process never releases it
            self._main_thread_ends = True
        send(self._socket, f"failed {code} {reason}")
        self._known.wait(5 * GRACE)
        if self._reporting_rank == self.rank != 0:  # the first rank is gone, and this one fails because of it
            self.on_verdict(self._verdict, self._code)
        return self._verdict or f"rank {self.rank}: {reason}"

    def close(self) -> None:
        """Says goodbye: that this connection ends is no failure."""
        self._closed = True
        send(self._socket, BYE)

    def _listen(self) -> None:
        line = receive(self._socket)
        if not line and self._closed:
            return
        self._reporting_rank = 0 if line else 1
        code, _, self._verdict = (line or f"{CRASHED} rank 0 {SILENT}").partition(" ")
        self._code = int(code)
        self._known.set()
        with self._ending:
            if not self._main_thread_ends:
                self._end()

    def _end(self) -> NoReturn:
        try:
            if self.rank == self._reporting_rank:
                self.on_verdict(self._verdict, self._code)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self._code)


def print_verdict(verdict: str, code: int) -> None:
    """Prints which rank failed first, and why, as its exit code says: by a mistake of the user's or otherwise."""
    print_if_read(f"{'error' if code == USER_ERROR else 'crashed'}: {verdict}", error=True)


class Peer:
    """The first rank's end of a connection: of a rank, once it has said which, or of whoever has found the port.

    Args:
        connection: as it was accepted.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.rank: int | None = None
        """None until it has greeted."""
        self.since = time.monotonic()
        self._text = b""

    def read(self) -> list[str]:
        """The lines that have been completed by what has arrived.

        Raises:
            OSError: the other end is gone, or sends no lines.
        """
        arrived = self.socket.recv(4096)
        *lines, self._text = (self._text + arrived).split(b"\n")
        if not arrived or len(self._text) > MAX_LINE:
            raise ConnectionError
        return [line.decode(errors="replace").strip() for line in lines]


class FailureDetector:
    """The first rank's end of all connections, in a thread that ends when all ranks have said goodbye.

    Its port is open until all ranks are connected. Connections without the token, such as those of a port scan, are
    closed and have no effect.

    Args:
        count: how many ranks there are.
        token: which a rank must send to be believed.
    """

    def __init__(self, count: int, token: str) -> None:
        self.count = count
        self._token = token
        self._server = socket.create_server(("", 0), backlog=count)
        close_in_forked_children(self._server)
        self.port: int = self._server.getsockname()[1]
        self._peers: list[Peer] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._left: set[int] = set()
        self._signs: dict[int, str] = {}
        self._thread = threading.Thread(target=self._watch, name="failure detector", daemon=True)
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Waits at most that many seconds until all ranks have said goodbye."""
        self._thread.join(timeout)

    def _watch(self) -> None:
        verdict_at = float("inf")
        while len(self._left | self._signs.keys()) < self.count and time.monotonic() < verdict_at:
            for key, _ in self._selector.select(0.1 if self._signs or self._strangers() else None):
                if key.fileobj is self._server:
                    self._accept()
                else:
                    self._hear(key.data)
            for peer in self._strangers():
                if time.monotonic() - peer.since > GREETING_SECONDS:
                    self._drop(peer)
            if self._signs:
                verdict_at = min(verdict_at, time.monotonic() + GRACE)
        if self._signs:
            self._send_verdict()

    def _strangers(self) -> list[Peer]:
        return [peer for peer in self._peers if peer.rank is None]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it is gone already, or this process has too many files open
            connection, _ = self._server.accept()
            close_in_forked_children(connection)
            peer = Peer(connection)
            self._peers.append(peer)
            self._selector.register(connection, selectors.EVENT_READ, peer)

    def _hear(self, peer: Peer) -> None:
        """Notes what a rank has sent, or that it is gone."""
        try:
            lines = peer.read()
        except OSError:
            self._drop(peer)
            return
        for line in lines:
            if peer.rank is None:
                if not self._greet(peer, line):
                    self._drop(peer)
                    return
            elif line.startswith("failed "):
                code, _, reason = line.removeprefix("failed ").partition(" ")
                self._signs.setdefault(peer.rank, f"{code} rank {peer.rank}: {reason}")
            elif line == BYE:
                self._left.add(peer.rank)
                self._selector.unregister(peer.socket)
                return

    def _greet(self, peer: Peer, line: str) -> bool:
        """Whether the first line of a connection is that of a rank that has none yet, which is then noted."""
        token, _, rank = line.partition(" ")
        free = {str(rank) for rank in range(self.count)} - {str(peer.rank) for peer in self._peers}
        if not hmac.compare_digest(token.encode(), self._token.encode()) or rank not in free:
            return False
        peer.rank = int(rank)
        if len(free) == 1:  # nobody else has a reason to connect
            self._selector.unregister(self._server)
            self._server.close()
        return True

    def _drop(self, peer: Peer) -> None:
        """Closes a connection; if it is that of a rank that has not said goodbye, it is gone."""
        if peer.rank is not None and peer.rank not in self._left:
            self._signs.setdefault(peer.rank, f"{CRASHED} rank {peer.rank} {SILENT}")
            self._left.add(peer.rank)
        self._selector.unregister(peer.socket)
        peer.socket.close()
        self._peers.remove(peer)

    def _send_verdict(self) -> None:
        """A rank that vanished is the cause of the others' failures; without one it is the first that failed."""
        vanished = [rank for rank, sign in self._signs.items() if sign.endswith(SILENT)]
        rank = (vanished or list(self._signs))[0]
        ranks = {peer.rank: peer for peer in self._peers if peer.rank is not None}
        # the first rank is the last to receive it: its process ends with it, and this thread with the process
        for peer in (ranks[number] for number in sorted(ranks, reverse=True)):
            send(peer.socket, self._signs[rank])


def send(peer: socket.socket, line: str) -> None:
    """Sends a line, if the other end is still there."""
    with contextlib.suppress(OSError):  # if it is not, receiving from it will say so
        peer.sendall(line.encode()[: MAX_LINE - 1] + b"\n")


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
    _connections.add(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


_connections: "weakref.WeakSet[socket.socket]" = weakref.WeakSet()


def _close_in_child() -> None:
    for connection in list(_connections):
        connection.close()


os.register_at_fork(after_in_child=_close_in_child)
