"""Signals that a process sends to itself."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from trainer.signals import StopSignal, signals_blocked

MASK = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"


def send(*numbers: signal.Signals) -> None:
    """To this thread: os.kill would let any thread take it, also one that does not block it."""
    for number in numbers:
        signal.raise_signal(number)


@pytest.mark.parametrize("number", StopSignal.SIGNALS)
def test_a_signal_is_noted(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert stop.received is None
        send(number)
        assert stop.received == number
    assert signal.getsignal(number) == before


def test_the_second_interrupt_stops_at_once() -> None:
    with StopSignal() as stop:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.received == signal.SIGINT


def test_other_signals_do_not_stop_however_often_they_come() -> None:
    with StopSignal() as stop:
        send(signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR1, signal.SIGINT)
        assert stop.received == signal.SIGINT


def test_handlers_are_put_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in StopSignal.SIGNALS]
    with pytest.raises(RuntimeError), StopSignal():
        raise RuntimeError
    assert [signal.getsignal(number) for number in StopSignal.SIGNALS] == before


def test_signals_that_were_blocked_are_delivered_on_entry() -> None:
    with signals_blocked():
        send(signal.SIGUSR1)
        with StopSignal() as stop:
            assert stop.received == signal.SIGUSR1


def test_signals_sent_within_are_delivered_on_exit() -> None:
    with StopSignal() as stop:
        with signals_blocked():
            send(signal.SIGUSR2)
            assert stop.received is None
        assert stop.received == signal.SIGUSR2


def test_a_signal_that_another_thread_receives_waits_for_the_exit() -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait, daemon=True)  # it does not block the signals
    other.start()
    with StopSignal() as stop:
        with signals_blocked():
            signal.pthread_kill(other.ident or 0, signal.SIGTERM)
            time.sleep(0.1)  # Python runs the handler in this thread, soon after the other one received it
            assert stop.received is None
        assert stop.received == signal.SIGTERM
    done.set()
    other.join()


def test_processes_that_are_started_within_inherit_it() -> None:
    with signals_blocked():
        within = subprocess.run([sys.executable, "-c", MASK], capture_output=True, text=True, check=True)
    after = subprocess.run([sys.executable, "-c", MASK], capture_output=True, text=True, check=True)
    assert all(number.name in within.stdout for number in StopSignal.SIGNALS)
    assert not any(number.name in after.stdout for number in StopSignal.SIGNALS)
