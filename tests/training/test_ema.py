"""The weight average against its closed form, and buffers that must never be averaged."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from cifargan.errors import UserError
from cifargan.models.biggan import BigGANGenerator
from cifargan.models.interface import Generator
from cifargan.models.spectral import SpectralNorm
from cifargan.training.ema import WeightAverage, copy_buffers
from cifargan.training.step import GANStep


class OneWeight(Generator):
    """A single parameter, so that the average can be followed by hand; no buffer at all."""

    def __init__(self, value: float) -> None:
        super().__init__(latent_dim=1, num_classes=0, image_size=1)
        self.weight = nn.Parameter(torch.tensor([value], dtype=torch.float64))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return z * self.weight

    def put(self, value: float) -> None:
        self.weight.data.fill_(value)


def follow(average: WeightAverage, step: int) -> None:
    average.prepare(step)
    average.update()


def averaged(average: WeightAverage) -> float:
    return next(average.generator.parameters()).item()


def test_moving_weights_are_weighted_geometrically_and_the_start_by_the_decay_to_the_n() -> None:
    live = OneWeight(8.0)
    average = WeightAverage(live, decay=0.7)
    values = [2.0, -1.0, 4.0, 0.5]
    for step, value in enumerate(values, start=1):
        live.put(value)
        follow(average, step)
    expected = sum(0.3 * 0.7 ** (len(values) - 1 - i) * value for i, value in enumerate(values)) + 0.7**4 * 8.0
    assert averaged(average) == pytest.approx(expected, rel=1e-12)
    assert live.weight.item() == 0.5
    assert not average.generator.training
    assert not any(p.requires_grad for p in average.generator.parameters())


def test_no_decay_follows_exactly() -> None:
    live = OneWeight(1.0)
    average = WeightAverage(live)
    live.put(0.1)
    follow(average, 1)
    assert averaged(average) == 0.1


def test_until_start_it_follows_then_it_averages() -> None:
    live = OneWeight(0.0)
    average = WeightAverage(live, decay=0.5, start=3)
    seen = []
    for step in range(1, 6):
        live.put(float(step))
        follow(average, step)
        seen.append(averaged(average))
    assert seen == pytest.approx([1.0, 2.0, 3.0, 3.5, 4.25], rel=1e-12)


def test_ramp_makes_the_half_life_a_share_of_the_steps_since_start() -> None:
    average = WeightAverage(OneWeight(0.0), decay=0.999, start=10, ramp=0.05)
    for step in (11, 50, 1010, 8000):
        half_life = 0.05 * (step - 10)
        assert average.decay_at(step) ** half_life == pytest.approx(0.5, rel=1e-9)
    # ln(1/2) / ln(0.999) = 692.8 steps is the cap's half-life, reached 692.8 / 0.05 steps after the start.
    assert average.decay_at(13_866 - 5) < 0.999
    assert average.decay_at(13_866 + 5) == 0.999
    assert average.decay_at(10) == 0.0


@pytest.mark.parametrize(
    "bad", [{"decay": 1.0}, {"decay": -0.1}, {"decay": float("nan")}, {"start": -1}, {"ramp": -0.5}]
)
def test_settings_out_of_range_are_refused_in_one_line(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"trainer.ema.{next(iter(bad))}") as error:
        WeightAverage(OneWeight(0.0), **bad)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_buffers_are_copied_and_not_averaged(new_gan: Callable[..., GANStep]) -> None:
    small = partial(BigGANGenerator, latent_dim=9, channels=8, attention=[8], class_embedding_dim=4)
    gan = new_gan(generator=small, ema={"decay": 0.9}, g_lr=0.1)
    vectors = [module for module in gan.ema.generator.modules() if isinstance(module, SpectralNorm)]
    before = [module.u.clone() for module in vectors]
    for _ in range(3):
        gan.iterate()
    live = dict(gan.generator.named_buffers())
    there = dict(gan.ema.generator.named_buffers())
    assert live.keys() == there.keys()
    assert all(torch.equal(live[name], there[name]) for name in live)
    # The vectors did turn, so that an average of them would have been shorter than 1.
    halves = [((old + module.u) / 2).norm() for old, module in zip(before, vectors, strict=True)]
    assert min(halves) < 0.99
    for module in vectors:
        assert float(module.u.norm()) == pytest.approx(1.0, abs=1e-5)
        assert float(module.v.norm()) == pytest.approx(1.0, abs=1e-5)
    counters = [value for name, value in there.items() if name.endswith("num_batches_tracked")]
    # Each iteration runs the generator twice in training mode: once for each step.
    assert counters
    assert all(value.dtype == torch.int64 and int(value) == 6 for value in counters)
    # Weights are averaged all the same.
    weights = zip(gan.generator.parameters(), gan.ema.generator.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in weights if a.numel() > 1)


def test_copying_buffers_leaves_parameters_alone() -> None:
    source, target = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    source.weight.data.fill_(7.0)
    source(torch.randn(8, 3))
    copy_buffers(source, target)
    assert torch.equal(target.running_mean, source.running_mean)  # type: ignore[arg-type]
    assert int(target.num_batches_tracked) == 1  # type: ignore[arg-type]
    assert torch.equal(target.weight, torch.ones(3))
