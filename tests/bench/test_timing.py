"""Turns and ratios, with a clock that the test sets."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from cifargan.bench.timing import one_thread, ratio, take_turns
from cifargan.bench.variants import Variant, Warm

CPU = torch.device("cpu")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("time.process_time", lambda: now[0])
    return now


def entry(now: list[float], order: list[str], name: str, seconds: list[float], estimate: float = 1.0) -> Warm:
    """A variant whose i-th iteration takes `seconds[i]`."""
    times: Iterator[float] = iter(seconds)

    def iterate() -> None:
        order.append(name)
        now[0] += next(times)

    trainer = SimpleNamespace(iterate=iterate)
    variant = Variant(name=name, precision="fp32")
    return Warm(variant=variant, trainer=trainer, seconds=estimate, start_seconds=0.0, peak_bytes=None)


def test_all_take_turns_and_ratios_are_formed_within_rounds(now: list[float]) -> None:
    order: list[str] = []
    entries = [entry(now, order, "slow", [4.0, 8.0, 40.0]), entry(now, order, "fast", [2.0, 2.0, 10.0])]
    slow, fast = take_turns(entries, rounds=3, turn_seconds=0.0, device=CPU)
    assert order == ["slow", "fast", "fast", "slow", "slow", "fast"]
    assert (slow, fast) == ([4.0, 8.0, 40.0], [2.0, 2.0, 10.0])
    assert ratio(slow, fast) == {"median": 4.0, "low": 2.0, "high": 4.0}


def test_a_turn_has_as_many_iterations_as_fit(now: list[float]) -> None:
    order: list[str] = []
    assert take_turns([entry(now, order, "a", [0.5] * 4, 0.25)], rounds=1, turn_seconds=1.0, device=CPU) == [[0.5]]
    assert len(order) == 4


def test_one_thread_ends_with_an_error_too() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="1 thread"), one_thread(CPU):
        raise RuntimeError(f"{torch.get_num_threads()} thread")
    assert torch.get_num_threads() == before
