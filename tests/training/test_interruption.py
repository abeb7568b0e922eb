"""Signals become a request; a second one stops at once."""

import signal
import threading

import pytest

from cifargan.training.interruption import HANGUPS, STOPS, InterruptedRunError, Interruption


@pytest.fixture(autouse=True)
def hangups_heard(hear_hangups: None) -> None:
    """Whoever runs the tests may have them ignored."""


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_is_noted_and_raises_nothing(number: signal.Signals) -> None:
    with Interruption() as interruption:
        assert interruption.requested is None
        signal.raise_signal(number)
        assert interruption.requested == number


def test_handlers_are_put_back_also_after_an_error() -> None:
    before = [signal.getsignal(number) for number in STOPS]

    def fail() -> None:
        assert [signal.getsignal(number) for number in STOPS] != before
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), Interruption():
        fail()
    assert [signal.getsignal(number) for number in STOPS] == before


def test_a_second_ctrl_c_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("number", [one for one in STOPS if one != signal.SIGINT and one not in HANGUPS])
def test_a_second_of_the_others_is_left_to_the_system(number: signal.Signals) -> None:
    with Interruption():
        signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.parametrize("number", HANGUPS)
def test_a_hangup_may_be_told_twice_and_under_nohup_not_at_all(number: signal.Signals) -> None:
    with Interruption() as interruption:
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert interruption.requested == number
    signal.signal(number, signal.SIG_IGN)
    with Interruption() as interruption:
        signal.raise_signal(number)
        assert interruption.requested is None
    assert signal.getsignal(number) == signal.SIG_IGN


def test_outside_the_main_thread_nothing_is_caught() -> None:
    before = [signal.getsignal(number) for number in STOPS]
    seen = []

    def work() -> None:
        with Interruption():
            seen.append([signal.getsignal(number) for number in STOPS])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_the_error_carries_the_number() -> None:
    assert InterruptedRunError(signal.SIGTERM, "stopped").signal == 15
