"""What ranks learn of each other's end over loopback. They are objects in one process, so that none is ended."""

import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from queue import Queue

import pytest

from trainer.distributed import failure_detector
from trainer.distributed.failure_detector import FailureDetector, PeerConnection

TOKEN = "c0ffee"


@pytest.fixture
def detector() -> Iterator[FailureDetector]:
    detector = FailureDetector(3, TOKEN)
    yield detector
    detector.join(10)
    assert not detector._thread.is_alive()


def peer(detector: FailureDetector, rank: int) -> PeerConnection:
    return PeerConnection(rank, "127.0.0.1", detector.port, TOKEN, timeout=10)


def vanishing(detector: FailureDetector, rank: int) -> socket.socket:
    """A rank whose connection ends without a goodbye, as that of a killed process does."""
    connection = stranger(detector)
    connection.sendall(f"{TOKEN} {rank}\n".encode())
    return connection


def stranger(detector: FailureDetector) -> socket.socket:
    return socket.create_connection(("127.0.0.1", detector.port), 10)


def until_heard(detector: FailureDetector, count: int) -> None:
    """Waits until the failures of that many ranks have arrived."""
    deadline = time.monotonic() + 10
    while len(detector._signs) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def verdicts_on_failure_of_rank_1(detector: FailureDetector, peers: list[PeerConnection]) -> set[str]:
    """What all learn if it fails first, and the others because of it."""
    with ThreadPoolExecutor() as threads:
        first = threads.submit(peers[1].fail, "RuntimeError: out of luck")
        until_heard(detector, 1)
        others = [threads.submit(peers[rank].fail, "connection closed by peer") for rank in (0, 2)]
        return {future.result(10) for future in [first, *others]}


def test_all_say_goodbye(detector: FailureDetector) -> None:
    for rank in range(3):
        peer(detector, rank).close()


STRANGERS = [
    b"",
    b"\n",
    b"GET / HTTP/1.1\r\nHost: node01\r\n\r\n",
    b"1\nfailed by somebody else\n",
    f"{TOKEN}0 1\nfailed by somebody else\n".encode(),
    f"{TOKEN} 3\nfailed by somebody else\n".encode(),
    f"{TOKEN} \n".encode(),
    "è²\n".encode(),
    b"x" * 2**17,
    bytes(range(256)),
]


def test_strangers_are_not_believed(detector: FailureDetector) -> None:
    first = peer(detector, 0)
    with stranger(detector) as silent:
        for text in STRANGERS:
            with stranger(detector) as other, contextlib.suppress(OSError):
                other.sendall(text)
                other.shutdown(socket.SHUT_WR)
                assert other.recv(1) == b"", "it was answered"
        peers = [first, peer(detector, 1), peer(detector, 2)]
        assert verdicts_on_failure_of_rank_1(detector, peers) == {"rank 1: RuntimeError: out of luck"}
        assert silent.fileno() > 0, "open until here"


def test_a_rank_connects_once(detector: FailureDetector) -> None:
    peers = [peer(detector, 0), peer(detector, 1)]
    with vanishing(detector, 1) as second:
        assert second.recv(1) == b"", "it was not closed"
    for one in [*peers, peer(detector, 2)]:
        one.close()


def test_the_port_is_closed_once_all_are_connected(detector: FailureDetector) -> None:
    peers = [peer(detector, rank) for rank in range(3)]
    deadline = time.monotonic() + 10
    while detector._server.fileno() > 0:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    with pytest.raises(ConnectionError):
        stranger(detector)
    for one in peers:
        one.close()


def test_a_silent_connection_is_closed(detector: FailureDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure_detector, "GREETING_SECONDS", 0.0)
    with stranger(detector) as silent:
        assert silent.recv(1) == b""
    monkeypatch.undo()
    for rank in range(3):
        peer(detector, rank).close()


def test_the_first_failure_is_the_cause(detector: FailureDetector) -> None:
    peers = [peer(detector, rank) for rank in range(3)]
    assert verdicts_on_failure_of_rank_1(detector, peers) == {"rank 1: RuntimeError: out of luck"}


def test_a_mistake_of_one_rank_ends_the_others_as_one(
    detector: FailureDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: Queue[tuple[int, str, int]] = Queue()
    peers = [peer(detector, rank) for rank in range(3)]
    for one in peers:
        monkeypatch.setattr(
            one, "_end", partial(lambda one: ended.put((one.rank, one._verdict, one._code)), one)
        )
    assert peers[1].fail("no such file", 2) == "rank 1: no such file"
    assert {ended.get(timeout=10) for _ in range(2)} == {(rank, "rank 1: no such file", 2) for rank in (0, 2)}


def test_a_rank_that_vanished_is_the_cause_of_earlier_failures(detector: FailureDetector) -> None:
    peers = [peer(detector, rank) for rank in range(2)]
    with closing(vanishing(detector, 2)) as connection, ThreadPoolExecutor() as threads:
        futures = [threads.submit(one.fail, "connection closed by peer") for one in peers]
        until_heard(detector, 2)
        connection.close()
        verdicts = {future.result(10) for future in futures}
    assert verdicts == {"rank 2 exited without reporting an error (killed or out of memory)"}


def test_all_know_the_verdict_before_the_process_of_the_first_rank_ends(
    detector: FailureDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = [peer(detector, rank) for rank in range(3)]
    sends, ended = failure_detector.send, []

    def send(connection: socket.socket, line: str) -> None:
        rank = next((peer.rank for peer in detector._peers if peer.socket is connection), None)
        if rank is None or not ended:  # None: a rank's own end
            sends(connection, line)
        if rank == 0:
            ended.append(True)  # and the detector with it

    monkeypatch.setattr(failure_detector, "send", send)
    assert verdicts_on_failure_of_rank_1(detector, peers) == {"rank 1: RuntimeError: out of luck"}


def test_the_end_of_the_first_rank_is_reported_by_the_second() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        alone = PeerConnection(1, "127.0.0.1", server.getsockname()[1], TOKEN, timeout=10)
        reported: list[str] = []
        alone.on_verdict = lambda verdict, code: reported.append(f"{verdict} {code}")
        connection, _ = server.accept()
        with ThreadPoolExecutor() as threads:
            verdict = threads.submit(alone.fail, "RuntimeError: out of luck")
            lines = connection.makefile()
            assert [lines.readline(), lines.readline()] == [
                f"{TOKEN} 1\n",
                "failed 1 RuntimeError: out of luck\n",
            ]
            lines.close()
            connection.close()
            assert verdict.result(10).startswith("rank 0 exited without reporting an error")
    assert reported == [f"{verdict.result()} 1"], "nobody else is left to report it"
