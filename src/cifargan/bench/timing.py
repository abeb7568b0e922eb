"""Time variants in turns. A machine's speed drifts, so ratios are formed within a round, in which each variant has a turn."""

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from omegaconf import DictConfig

from cifargan.bench.presets import random_images
from cifargan.bench.variants import Variant, Warm, warm
from cifargan.training.state import be_deterministic, use_tf32

log = logging.getLogger(__name__)

IMAGES = {"cuda": 50_000, "cpu": 2_000}
TURN_SECONDS = {"cuda": 1.0, "cpu": 0.4}


def compare(
    variants: Sequence[Variant], config: DictConfig, *, device: torch.device, rounds: int
) -> tuple[list[dict[str, Any]], Warm]:
    """Build all variants, the baseline first, and time them in `rounds` rounds.

    Returns:
        For each variant: its name, precision and options, the seconds of an iteration in each round, the ratio to the
        baseline, the iterations and real images a second in the median round, the seconds of its start, its peak of
        device memory (None without CUDA), and whether iterations are replayed from a CUDA graph (None: not asked for).
        A variant that does not fit into memory beside the others is left out. Then the baseline, warm.
    """
    images = random_images(IMAGES[device.type], image_size=config.data.image_size)
    be_deterministic(False)  # cuDNN chooses the fastest algorithms for all variants, as in training
    entries: list[Warm] = []
    for variant in variants:
        log.info("warming up: %s", variant.name)
        try:
            entries.append(warm(variant, config, images=images, device=device))
        except torch.OutOfMemoryError:
            if not entries:
                raise
            log.warning("%s: left out, it does not fit into memory beside the others", variant.name)
    log.info("timing: %d rounds", rounds)
    times = take_turns(entries, rounds=rounds, turn_seconds=TURN_SECONDS[device.type], device=device)
    results = []
    for entry, seconds in zip(entries, times, strict=True):
        rate, speed = 1 / statistics.median(seconds), entry.variant.speed
        captures = speed is not None and speed.graph
        results.append(
            {
                "name": entry.variant.name,
                "precision": entry.variant.precision,
                "speed": None if speed is None else asdict(speed),
                "seconds": seconds,
                "ratio": ratio(times[0], seconds),
                "iterations_per_second": rate,
                "images_per_second": rate * config.trainer.d_steps * config.trainer.batch_size,
                "start_seconds": entry.start_seconds,
                "peak_bytes": entry.peak_bytes,
                "replayed": bool(entry.trainer.run.replayed) if captures else None,
            }
        )
    return results, entries[0]


def take_turns(entries: Sequence[Warm], *, rounds: int, turn_seconds: float, device: torch.device) -> list[list[float]]:
    """Seconds of an iteration, for each variant and round; a turn takes about `turn_seconds`, and their order rotates."""
    seconds: list[list[float]] = [[] for _ in entries]
    for turn in range(rounds):
        for place in range(len(entries)):
            index = (turn + place) % len(entries)
            entry = entries[index]
            use_tf32(entry.variant.tf32)
            n = max(1, round(turn_seconds / entry.seconds))
            seconds[index].append(seconds_of(entry.trainer.iterate, n, device) / n)
    return seconds


def ratio(baseline: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """How many times faster than the baseline, in the median, slowest and fastest round."""
    found = [base / own for base, own in zip(baseline, seconds, strict=True)]
    return {"median": statistics.median(found), "low": min(found), "high": max(found)}


def seconds_of(work: Callable[[], object], n: int, device: torch.device) -> float:
    """Seconds of n calls: wall time between two synchronisations of a GPU, processor time on a CPU."""
    clock = time.process_time
    if device.type == "cuda":
        clock = time.perf_counter
        torch.cuda.synchronize(device)
    started = clock()
    for _ in range(n):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Inside the context, a CPU computes in one thread, so that processor time is the time of the work alone."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
