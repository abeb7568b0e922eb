"""Signals become a request; a second one stops at once."""

import signal
import threading

import pytest

from cifargan.training.interruption import InterruptedRunError, Interruption

ALL = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))


@pytest.mark.parametrize("number", ALL)
def test_a_signal_is_noted_and_raises_nothing(number: signal.Signals) -> None:
    with Interruption() as interruption:
        assert interruption.requested is None
        signal.raise_signal(number)
        assert interruption.requested == number


def test_handlers_are_put_back_also_after_an_error() -> None:
    before = [signal.getsignal(number) for number in ALL]

    def fail() -> None:
        assert [signal.getsignal(number) for number in ALL] != before
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), Interruption():
        fail()
    assert [signal.getsignal(number) for number in ALL] == before


def test_a_second_ctrl_c_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("number", ALL[1:])
def test_a_second_of_the_others_is_left_to_the_system(number: signal.Signals) -> None:
    with Interruption():
        signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_DFL


def test_outside_the_main_thread_nothing_is_caught() -> None:
    before = [signal.getsignal(number) for number in ALL]
    seen = []

    def work() -> None:
        with Interruption():
            seen.append([signal.getsignal(number) for number in ALL])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_the_error_carries_the_number() -> None:
    assert InterruptedRunError(signal.SIGTERM, "stopped").signal == 15
