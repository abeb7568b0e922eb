"""Latents: their distribution, one for each image, and the path between two."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from cifargan.latents import latents, slerp, truncated_normal


def draw(n: int, dim: int, truncation: float | None, seed: int = 0) -> Tensor:
    return truncated_normal(n, dim, truncation=truncation, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("t", [0.01, 0.5, 1.0, 2.0])
def test_truncated_latents_follow_the_truncated_normal(t: float) -> None:
    z = draw(20_000, 2, t)
    law = stats.truncnorm(-t, t)
    assert z.dtype == torch.float32
    assert z.abs().max() <= t
    assert z.abs().max() > 0.99 * t
    assert stats.kstest(z.flatten().numpy(), law.cdf).pvalue > 0.01
    assert z.double().var().item() == pytest.approx(law.var(), rel=0.02)
    assert z.double().mean().item() == pytest.approx(0, abs=4 * law.std() / 200)


def test_truncation_resamples_and_does_not_scale() -> None:
    z = draw(20_000, 2, 0.5).double().flatten()
    # Scaled latents would have the standard deviation .5; those resampled within (-.5, .5) have .28.
    assert z.std().item() == pytest.approx(stats.truncnorm(-0.5, 0.5).std(), rel=0.02)
    assert stats.kstest(z.numpy(), stats.norm(0, 0.5).cdf).pvalue < 1e-9
    redrawn = draw(100_000, 2, None, seed=1).flatten()
    assert stats.ks_2samp(z.numpy(), redrawn[redrawn.abs() <= 0.5].numpy()).pvalue > 0.01


@pytest.mark.parametrize("truncation", [None, math.inf, 100.0])
def test_without_truncation_latents_are_standard_normal(truncation: float | None) -> None:
    z = draw(20_000, 2, truncation)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    assert z.double().var().item() == pytest.approx(1, rel=0.02)


def test_the_ends_of_the_uniform_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([[0.0, 1 - 2**-53]], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: ends)
    low, high = draw(1, 2, None)[0].tolist()
    assert low == -high
    assert high == pytest.approx(stats.norm.isf(2**-54), abs=0.1)


def test_the_latent_of_an_image_does_not_depend_on_the_others() -> None:
    labels, indices = torch.arange(3).repeat(50), torch.arange(50).repeat_interleave(3)
    z = latents(labels, indices, latent_dim=4, truncation=None, seed=7)
    some = torch.tensor([149, 3, 61, 62])
    assert torch.equal(latents(labels[some], indices[some], latent_dim=4, truncation=None, seed=7), z[some])
    assert len({tuple(row) for row in z.tolist()}) == 150
    other = latents(labels, indices, latent_dim=4, truncation=None, seed=7 + 2**32)
    assert not (z == other).any()
    assert z.var().item() == pytest.approx(1, abs=0.2)


def test_slerp_follows_the_great_circle() -> None:
    start, end = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [2.0, 2.0]])
    expected = torch.tensor([[2 * math.cos(math.pi / 6), 2 * math.sin(math.pi / 6)], [4 / 3, 4 / 3]])
    torch.testing.assert_close(slerp(start, end, 1 / 3), expected)
