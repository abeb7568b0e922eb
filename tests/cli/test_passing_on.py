"""Signals to the process that has started the ranks of a run."""

import multiprocessing
import os
import signal
from dataclasses import dataclass, field

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException

from cifargan.processes import passing_on
from cifargan.training.interruption import HANGUPS, NOTICES, STOPS

pytestmark = [
    pytest.mark.skipif(not NOTICES, reason="no such signals here"),
    pytest.mark.usefixtures("hear_hangups"),
]


@dataclass
class Child:
    """A process that notes the signals that it gets."""

    pid: int
    alive: bool = True
    signals: list[int] = field(default_factory=list)

    def is_alive(self) -> bool:
        return self.alive

    def kill(self) -> None:
        self.signals.append(signal.SIGKILL)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    """Two processes that this one seems to have started."""
    started = [Child(0), Child(1)]
    monkeypatch.setattr(multiprocessing, "active_children", lambda: started)
    monkeypatch.setattr(os, "kill", lambda pid, number: started[pid].signals.append(number))
    return started


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_is_passed_on_to_all_that_live(number: signal.Signals, children: list[Child]) -> None:
    before = [signal.getsignal(one) for one in STOPS]
    children[0].alive = False
    received: list[int] = []
    with passing_on(received):
        signal.raise_signal(number)
    assert received == [number]
    assert [child.signals for child in children] == [[], [number]]
    assert [signal.getsignal(one) for one in STOPS] == before


def test_a_second_ctrl_c_kills_them_and_ends_this_process(children: list[Child]) -> None:
    with passing_on([]):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # is another kind
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert children[1].signals == [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]


def test_a_hangup_may_come_twice(children: list[Child]) -> None:
    with passing_on([]):
        for _ in range(2):
            signal.raise_signal(HANGUPS[0])
    assert children[1].signals == [HANGUPS[0]] * 2


def test_before_there_are_processes_torch_gets_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "active_children", list)
    with passing_on([]), pytest.raises(SignalException) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.sigval == signal.SIGTERM
