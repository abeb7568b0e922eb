"""A whole benchmark: the gate, then the contestants, then what they did, as one record."""

import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from cifargan.bench.gate import Check, gate, require
from cifargan.bench.hotspots import Hotspot, hotspots
from cifargan.bench.memory import Memory
from cifargan.bench.presets import random_images
from cifargan.bench.profile import Profile, profile
from cifargan.bench.roofline import Roofline, count_flops, count_traffic, measure
from cifargan.bench.timing import Timing, one_thread, take_turns
from cifargan.bench.variants import Contestant, Variant, prepare
from cifargan.runs.provenance import device_name, git_state, versions
from cifargan.training.rng import be_deterministic

log = logging.getLogger(__name__)

IMAGES = {"cuda": 50_000, "cpu": 2_000}
BLOCK_SECONDS = {"cuda": 1.0, "cpu": 0.4}


@dataclass(frozen=True, kw_only=True)
class Result:
    """All about one contestant; rates are those of its median round.

    Attributes:
        name: of the variant.
        precision: number format of its forward passes.
        switches: what was switched on; None: the reference.
        timing: seconds and ratio to the baseline.
        images_per_second: real images that its discriminator learnt from.
        flops: floating point operations a second, those of the textbook iteration.
        roofline_share: of a large matrix product's in the same number format.
        profile: what an iteration asks of the host.
        start_seconds: wall time until everything was compiled, recorded and chosen.
        peak_bytes: most memory held on the device; None without CUDA.
        replayed: whether iterations came from a CUDA graph in the end; None where none was asked for.
    """

    name: str
    precision: str
    switches: dict[str, Any] | None
    timing: Timing
    images_per_second: float
    flops: float
    roofline_share: float
    profile: Profile
    start_seconds: float
    peak_bytes: int | None
    replayed: bool | None


@dataclass(frozen=True, kw_only=True)
class Race:
    """What came of timing the contestants against each other.

    Attributes:
        flops: floating point operations of an iteration in the textbook order.
        traffic: bytes that its operators read and write, each for itself.
        roofline: what the device does at best.
        results: one for each contestant, the baseline first.
        left_out: contestants that did not fit into the device's memory.
        watched: the fastest of the trainer's, whose time was looked into.
        hotspots: where its time goes.
    """

    flops: int
    traffic: int
    roofline: Roofline
    results: Sequence[Result]
    left_out: Sequence[str]
    watched: str
    hotspots: Sequence[Hotspot]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `cifargan bench` found, ready for JSON.

    Attributes:
        preset: the experiment's name.
        config: the configuration that was measured, resolved.
        machine: device, processor, versions, commit.
        checks: the gate.
        race: the timings; None where nothing was timed.
        memory: which batch fits; None where it was not asked for.
    """

    preset: str
    config: dict[str, Any]
    machine: dict[str, Any]
    checks: list[Check]
    race: Race | None = None
    memory: Memory | None = None

    def record(self) -> dict[str, Any]:
        """As dicts, lists and scalars."""
        return asdict(self)


def passed_gate(config: DictConfig) -> list[Check]:
    """The gate's lines.

    Raises:
        UserError: one of them failed.
    """
    checks = gate(config)
    require(checks)
    return checks


def machine(device: torch.device) -> dict[str, Any]:
    """What figures were measured on, and by which code."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": device_name(device),
        "cpu": cpu_name(),
        "threads": 1 if device.type == "cpu" else torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": versions(),
        "git": git_state(Path(__file__).parent),
    }


def cpu_name() -> str:
    """The processor as its maker calls it, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def race(variants: Sequence[Variant], config: DictConfig, *, device: torch.device, rounds: int) -> Race:
    """Time the variants against each other.

    Args:
        variants: the baseline, a reference, first.
        config: what all of them train.
        device: where.
        rounds: how often each one's turn comes.
    """
    images = random_images(IMAGES.get(device.type, 2_000), image_size=config.data.image_size)
    be_deterministic(False)  # cuDNN looks for the fastest algorithm, for all contestants, as in training
    contestants: list[Contestant] = []
    left_out: list[str] = []
    with one_thread(device):
        for variant in variants:
            log.info("warming up: %s", variant.name)
            try:
                contestants.append(prepare(variant, config, images=images, device=device))
            except torch.OutOfMemoryError:
                if not contestants:
                    raise
                left_out.append(variant.name)
        flops, traffic = (count(contestants[0].iterate) for count in (count_flops, count_traffic))
        profiles = [profile(contestant, device) for contestant in contestants]
        log.info("timing: %d rounds", rounds)
        block = BLOCK_SECONDS.get(device.type, 0.4)
        timings = take_turns(contestants, rounds=rounds, block_seconds=block, device=device)
        roof = measure(device, {variant.precision for variant in variants})
        watched = _fastest(contestants, timings, device)
        spots = hotspots(watched.iterate, device)
    real_images = config.trainer.d_steps * config.trainer.batch_size
    results = []
    for contestant, timing, asked in zip(contestants, timings, profiles, strict=True):
        variant, rate = contestant.variant, timing.iterations_per_second
        results.append(
            Result(
                name=variant.name,
                precision=variant.precision,
                switches=None if variant.switches is None else asdict(variant.switches),
                timing=timing,
                images_per_second=real_images * rate,
                flops=flops * rate,
                roofline_share=flops * rate / roof.flops[variant.precision],
                profile=asked,
                start_seconds=contestant.start_seconds,
                peak_bytes=contestant.peak_bytes,
                replayed=_replayed(contestant),
            )
        )
    return Race(
        flops=flops,
        traffic=traffic,
        roofline=roof,
        results=results,
        left_out=left_out,
        watched=watched.variant.name,
        hotspots=spots,
    )


def _fastest(contestants: Sequence[Contestant], timings: Sequence[Timing], device: torch.device) -> Contestant:
    """Of the trainer's, and of those that can be looked into."""

    def can_be_watched(contestant: Contestant) -> bool:
        switches = contestant.variant.switches
        return switches is not None and (device.type == "cuda" or switches.compile == "off")

    pairs = zip(contestants, timings, strict=True)
    rates = [(timing.iterations_per_second, each) for each, timing in pairs if can_be_watched(each)]
    return max(rates, key=lambda pair: pair[0])[1]


def _replayed(contestant: Contestant) -> bool | None:
    """Whether a gan that was to replay its rounds does."""
    switches = contestant.variant.switches
    if switches is None or not switches.graph:
        return None
    gan = contestant.player
    return gan.round.chosen not in (None, gan.round.play)
