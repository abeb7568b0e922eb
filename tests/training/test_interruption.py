"""Signals become a request; a second one stops at once."""

import pickle
import signal
import threading

import pytest

from cifargan.training.interruption import HANGUPS, STOPS, InterruptedRunError, Interruption

pytestmark = pytest.mark.usefixtures("hear_hangups")


@pytest.mark.parametrize("number", STOPS)
def test_a_first_signal_is_noted_and_a_second_one_is_not_caught(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in STOPS]
    with Interruption() as interruption:
        assert interruption.requested is None
        signal.raise_signal(number)
        assert interruption.requested == number
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        elif number in HANGUPS:
            signal.raise_signal(number)  # the system and the shell both send one
        else:
            assert signal.getsignal(number) == signal.SIG_DFL
    assert [signal.getsignal(one) for one in STOPS] == before


def test_handlers_are_restored_after_an_error() -> None:
    before = [signal.getsignal(number) for number in STOPS]

    def fail() -> None:
        assert [signal.getsignal(number) for number in STOPS] != before
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), Interruption():
        fail()
    assert [signal.getsignal(number) for number in STOPS] == before


@pytest.mark.parametrize("number", HANGUPS)
def test_under_nohup_a_hangup_is_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with Interruption() as interruption:
        signal.raise_signal(number)
        assert interruption.requested is None
    assert signal.getsignal(number) == signal.SIG_IGN


def test_outside_the_main_thread_nothing_is_caught() -> None:
    seen: list[object] = []

    def work() -> None:
        with Interruption():
            seen.extend(signal.getsignal(number) for number in STOPS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(number) for number in STOPS]


def test_the_error_carries_the_number_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(InterruptedRunError(signal.SIGTERM, "stopped")))
    assert (error.signal, str(error)) == (15, "stopped")
