"""What ranks learn of each other's end over loopback. They are objects in one process, so that none is ended."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from trainer.distributed import failure_detector
from trainer.distributed.failure_detector import FailureDetector, PeerConnection


@pytest.fixture
def detector() -> Iterator[FailureDetector]:
    detector = FailureDetector(count=3)
    yield detector
    detector.join(10)
    assert not detector._thread.is_alive()


def peer(detector: FailureDetector, rank: int) -> PeerConnection:
    return PeerConnection(rank, "127.0.0.1", detector.port, timeout=10)


def vanishing(detector: FailureDetector, rank: int) -> socket.socket:
    """A rank whose connection ends without a goodbye, as that of a killed process does."""
    connection = socket.create_connection(("127.0.0.1", detector.port), 10)
    connection.sendall(f"{rank}\n".encode())
    return connection


def until_heard(detector: FailureDetector, count: int) -> None:
    """Waits until the failures of that many ranks have arrived."""
    deadline = time.monotonic() + 10
    while len(detector._signs) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_all_say_goodbye(detector: FailureDetector) -> None:
    for rank in range(3):
        peer(detector, rank).close()


def test_the_first_failure_is_the_cause(detector: FailureDetector) -> None:
    peers = [peer(detector, rank) for rank in range(3)]
    with ThreadPoolExecutor() as threads:
        first = threads.submit(peers[1].fail, "RuntimeError: out of luck")
        until_heard(detector, 1)
        others = [threads.submit(peers[rank].fail, "connection closed by peer") for rank in (0, 2)]
        verdicts = {future.result(10) for future in [first, *others]}
    assert verdicts == {"rank 1: RuntimeError: out of luck"}


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
        if connection not in detector._ranks:  # a rank's own end
            sends(connection, line)
        elif not ended:
            sends(connection, line)
            ended.extend([True] if detector._ranks[connection] == 0 else [])  # the detector ends with it

    monkeypatch.setattr(failure_detector, "send", send)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(peers[1].fail, "RuntimeError: out of luck")
        until_heard(detector, 1)
        others = [threads.submit(peers[rank].fail, "connection closed by peer") for rank in (0, 2)]
        verdicts = {future.result(10) for future in [first, *others]}
    assert verdicts == {"rank 1: RuntimeError: out of luck"}


def test_the_end_of_the_first_rank_is_reported_by_the_second() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        alone = PeerConnection(1, "127.0.0.1", server.getsockname()[1], timeout=10)
        reported: list[str] = []
        alone.on_verdict = reported.append
        connection, _ = server.accept()
        with ThreadPoolExecutor() as threads:
            verdict = threads.submit(alone.fail, "RuntimeError: out of luck")
            lines = connection.makefile()
            assert [lines.readline(), lines.readline()] == ["1\n", "failed RuntimeError: out of luck\n"]
            lines.close()
            connection.close()
            assert verdict.result(10).startswith("rank 0 exited without reporting an error")
    assert reported == [verdict.result()], "nobody else is left to report it"
