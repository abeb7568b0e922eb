"""Signals to the process that has started the ranks of a run."""

import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException

from cifargan.processes import handing_on
from cifargan.training.interruption import NOTICES, STOPS

SAYS = """
import signal, sys
def note(number, frame):
    print(number, flush=True)
for name in sys.argv[1:]:
    signal.signal(int(name), note)
print("ready", flush=True)
while True:
    signal.pause()
"""


class Child(subprocess.Popen[str]):
    """A process that says which signals it got, and lives on."""

    def __init__(self) -> None:
        super().__init__([sys.executable, "-c", SAYS, *map(str, map(int, STOPS))], stdout=subprocess.PIPE, text=True)
        assert self.says() == "ready"

    def is_alive(self) -> bool:
        return self.poll() is None

    def says(self) -> str:
        assert self.stdout is not None
        return self.stdout.readline().strip()


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Child]]:
    """Two processes that this one seems to have started to train."""
    started = [Child(), Child()]
    monkeypatch.setattr(multiprocessing, "active_children", lambda: started)
    yield started
    for child in started:
        child.kill()
        child.communicate()


pytestmark = [
    pytest.mark.skipif(not NOTICES, reason="no such signals here"),
    pytest.mark.usefixtures("hear_hangups"),
]


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_is_handed_on_and_waited_for(number: signal.Signals, children: list[Child]) -> None:
    before = [signal.getsignal(one) for one in STOPS]
    with handing_on() as heard:
        assert heard == []
        signal.raise_signal(number)
        assert heard == [number]
        assert [child.says() for child in children] == [str(int(number))] * 2
    assert [signal.getsignal(one) for one in STOPS] == before


def test_a_second_ctrl_c_kills_them_and_ends_this_process(children: list[Child]) -> None:
    with handing_on() as heard:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # is another kind
        assert all(child.is_alive() for child in children)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [child.wait() for child in children] == [-signal.SIGKILL] * 2
    assert heard == [signal.SIGINT, signal.SIGTERM]


def test_a_hangup_is_no_more_for_being_told_twice(children: list[Child]) -> None:
    with handing_on() as heard:
        for _ in range(2):
            signal.raise_signal(signal.SIGHUP)
            assert [child.says() for child in children] == [str(int(signal.SIGHUP))] * 2
    assert heard == [signal.SIGHUP] * 2


def test_one_that_has_ended_is_passed_over(children: list[Child]) -> None:
    children[0].kill()
    children[0].wait()
    with handing_on():
        signal.raise_signal(signal.SIGINT)
    assert children[1].says() == str(int(signal.SIGINT))


def test_before_there_are_processes_the_agent_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "active_children", list)
    with handing_on(), pytest.raises(SignalException) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.sigval == signal.SIGTERM
