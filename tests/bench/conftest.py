"""Narrow networks in float64, each pair with a reference of the same weights."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from cifargan.bench import gate
from cifargan.bench.gate import float64
from cifargan.bench.presets import build_reference, compose, copy_weights, random_images
from cifargan.training.speed import SpeedOptions
from cifargan.training.step import GANStep

Pair = tuple[GANStep, Any]


@pytest.fixture(autouse=True)
def restore_switches() -> Iterator[None]:
    """Restore torch's global options and seeds, which building a GAN sets."""
    benchmark, deterministic = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    tf32 = torch.backends.cudnn.allow_tf32
    with torch.random.fork_rng():
        yield
    torch.backends.cudnn.benchmark = benchmark
    torch.backends.cudnn.allow_tf32 = tf32
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Pair]]:
    """A function that gives a preset's narrow GAN and its reference; the test runs in float64."""
    monkeypatch.setattr(gate, "WIDTH", 8)

    def make(preset: str, *, speed: SpeedOptions = gate.ALL, overrides: tuple[str, ...] = ()) -> Pair:
        config = gate.small(compose(preset, "device=cpu", *overrides))
        images = random_images(16, image_size=config.data.image_size)
        gan = gate.randomised_gan(config, images, speed)
        reference = build_reference(config, images=images, device=gate.CPU)
        copy_weights(gan, reference)
        return gan, reference

    with float64():
        yield make
