"""Who is how fast: all contestants take turns, and what is compared is what happened in the same round.

A machine's speed drifts, with its temperature and with its other work. Within a round it is the same for all.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from cifargan.bench.variants import Contestant
from cifargan.training.rng import use_tf32


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A quantity over all rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value a round."""
        return cls(median=statistics.median(values), low=min(values), high=max(values))


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How one contestant did.

    Attributes:
        seconds: of one iteration, for each round.
        ratio: how many times faster than the baseline, formed round by round.
    """

    seconds: list[float]
    ratio: Spread

    @property
    def iterations_per_second(self) -> float:
        """At the median round."""
        return 1 / statistics.median(self.seconds)


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, compute in one thread while entered: processor time then is working time, and nothing else's."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def take_turns(
    contestants: Sequence[Contestant], *, rounds: int, block_seconds: float, device: torch.device
) -> list[Timing]:
    """Time all contestants in every round, in turning order.

    Args:
        contestants: warm ones, the baseline first.
        rounds: how many.
        block_seconds: how long each one's turn takes, about.
        device: where they run.
    """
    seconds: list[list[float]] = [[] for _ in contestants]
    for turn in range(rounds):
        for place in range(len(contestants)):
            index = (turn + place) % len(contestants)
            contestant = contestants[index]
            use_tf32(contestant.variant.tf32)
            n = max(1, round(block_seconds / contestant.seconds))
            seconds[index].append(seconds_of(contestant.iterate, n, device) / n)
    return [
        Timing(seconds=own, ratio=Spread.of([base / each for base, each in zip(seconds[0], own, strict=True)]))
        for own in seconds
    ]


def seconds_of(work: Callable[[], object], n: int, device: torch.device) -> float:
    """What n calls take: wall time until a GPU is done, or processor time on a CPU, which other programs do not change."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(n):
            work()
        torch.cuda.synchronize(device)
        return time.perf_counter() - started
    started = time.process_time()
    for _ in range(n):
        work()
    return time.process_time() - started
