"""Turns and ratios, on a clock that the test sets."""

import pytest
import torch

from cifargan.bench.timing import Spread, one_thread, take_turns
from cifargan.bench.variants import Contestant, Variant

CPU = torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def contestant(self, name: str, seconds: list[float], estimate: float = 1.0) -> Contestant:
        """Takes `seconds[i]` in its i-th call."""
        remaining = iter(seconds)

        def iterate() -> None:
            self.order.append(name)
            self.now += next(remaining)

        variant = Variant(name=name, precision="fp32")
        return Contestant(
            variant=variant, player=None, iterate=iterate, seconds=estimate, start_seconds=0.0, peak_bytes=None
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("time.process_time", lambda: made.now)
    return made


def test_ratios_are_formed_within_rounds_and_all_take_turns(clock: Clock) -> None:
    slow, fast = clock.contestant("slow", [4.0, 8.0, 40.0]), clock.contestant("fast", [2.0, 2.0, 10.0])
    first, second = take_turns([slow, fast], rounds=3, block_seconds=0.0, device=CPU)
    assert clock.order == ["slow", "fast", "fast", "slow", "slow", "fast"]
    assert first.seconds == [4.0, 8.0, 40.0]
    assert first.ratio == Spread(median=1.0, low=1.0, high=1.0)
    assert second.ratio == Spread(median=4.0, low=2.0, high=4.0)
    assert second.iterations_per_second == 0.5


def test_a_turn_is_as_many_iterations_as_fill_it(clock: Clock) -> None:
    quick = clock.contestant("quick", [0.5] * 4, estimate=0.25)
    (found,) = take_turns([quick], rounds=1, block_seconds=1.0, device=CPU)
    assert len(clock.order) == 4
    assert found.seconds == [0.5]


def test_one_thread_ends_with_an_error_too() -> None:
    before = torch.get_num_threads()
    inside = []

    def fail() -> None:
        inside.append(torch.get_num_threads())
        raise RuntimeError

    with pytest.raises(RuntimeError), one_thread(CPU):
        fail()
    assert inside == [1]
    assert torch.get_num_threads() == before
