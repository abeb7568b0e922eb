"""Bytes that can be counted by hand."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cifargan.bench.gate import small
from cifargan.bench.memory import CHOSEN, GB, IMAGES, Fit, LiveStorage, fit, which_batch_fits
from cifargan.bench.presets import compose, random_images
from cifargan.build.gan import build_gan


def test_what_is_alive_and_the_most_that_was() -> None:
    with LiveStorage() as storage:
        x = torch.zeros(8, 16)  # 512 bytes
        y = x * 2  # 512
        view = y.view(-1)  # nothing: y's own
        del y
        assert storage.now == 1024
        del view
        assert storage.now == 512
        z = torch.zeros(4)  # 16
        assert (storage.now, storage.peak) == (528, 1024)
        del x, z
    assert storage.now == 0


def test_activations_that_a_backward_pass_keeps() -> None:
    n, width = 32, 64
    activation, weights = 4 * n * width, 3 * 4 * width * width
    with LiveStorage() as storage:
        layers = [nn.Linear(width, width, bias=False) for _ in range(3)]
        assert storage.now == weights
        h = torch.zeros(n, width)
        for layer in layers:
            h = layer(h).tanh()
        # The input and each layer's tanh, which is the next one's input and all that tanh needs for its own gradient.
        assert storage.now == weights + 4 * activation
        # While the last tanh was made, its argument was there too.
        assert storage.peak == weights + 5 * activation
        loss = h.sum()
        del h
        assert storage.now == weights + 4 * activation + 4
        torch.autograd.backward(loss)
        assert storage.now == 2 * weights + 4


def test_tensors_without_data_count_alike() -> None:
    peaks = []
    for mode in (FakeTensorMode(), torch.enable_grad()):
        with mode, LiveStorage() as storage:
            layer = nn.Conv2d(3, 8, 3)
            layer(torch.zeros(4, 3, 16, 16)).relu().sum().backward()
        peaks.append(storage.peak)
    assert peaks[0] == pytest.approx(peaks[1], rel=0.05)
    assert peaks[0] > 4 * (4 * 8 * 14 * 14)


@pytest.mark.slow
def test_a_trainer_holds_weights_moments_and_average_and_grows_with_the_batch() -> None:
    config = small(compose("cdcgan_concat", "device=cpu"))
    found = which_batch_fits(config, torch.device("cpu"), batch_sizes=(4, 8, 16))
    assert found.estimated
    assert [each.gigabytes for each in found.fits] == [4, 8, 16]
    with LiveStorage() as storage:
        images = random_images(IMAGES, image_size=32)
        gan = build_gan(config, images=images, device=torch.device("cpu"), switches=CHOSEN)
        gan.iterate()
        storage.peak = storage.now
        gan.iterate()
    assert found.peaks[4] == pytest.approx(storage.peak, rel=0.02)
    g, d = (4 * sum(p.numel() for p in network.parameters()) for network in (gan.generator, gan.discriminator))
    # Weights and two moments of both, the average, one network's gradients at the end of its step, and the images.
    still = 4 * g + 3 * d + min(g, d) + IMAGES * 3 * 32 * 32
    each = (found.peaks[16] - found.peaks[8]) / 8
    assert each == pytest.approx((found.peaks[8] - found.peaks[4]) / 4, rel=0.05)
    # Three channels of 32x32 floats for real, generated and mirrored images at the least.
    assert each > 3 * 3 * 32 * 32 * 4
    assert found.peaks[4] - 4 * each == pytest.approx(still, rel=0.01)


def test_what_fits_is_read_off_a_line() -> None:
    peaks = {10: int(1.0 * GB), 20: int(1.5 * GB)}  # 0.5 GB and 0.05 GB an image
    assert fit(peaks, 4, wanted=62) == Fit(gigabytes=4, batch_size=62, accumulate=1)  # 3.6 = 0.5 + 0.05 x 62
    assert fit(peaks, 4, wanted=64) == Fit(gigabytes=4, batch_size=62, accumulate=2)
    assert fit({10: int(1.0 * GB), 20: int(1.9 * GB)}, 1, wanted=64) == Fit(gigabytes=1, batch_size=8, accumulate=8)
    assert fit({10: int(50 * GB), 20: int(50.9 * GB)}, 4, wanted=64) == Fit(gigabytes=4, batch_size=0, accumulate=None)
