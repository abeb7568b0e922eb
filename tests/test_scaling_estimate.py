"""The estimate of what several GPUs would give: its counts against those of the papers and of the networks."""

from types import ModuleType

import pytest
from torch import nn

from cifargan.bench.presets import compose
from cifargan.build.parts import build_discriminator, build_generator


def test_operations_are_those_of_the_original_networks(script: ModuleType) -> None:
    config = compose("biggan_original")
    shape = {"num_classes": 10, "image_size": 32}
    g, d = script.forward_flops(
        build_generator(config.model.generator, **shape), build_discriminator(config.model.discriminator, **shape), 32
    )
    width, sizes = 256, (8, 16, 32)
    convolutions = sum(2 * 2 * 9 * width**2 * size**2 for size in sizes)
    shortcuts = sum(2 * width**2 * (size // 2) ** 2 for size in sizes)  # before they are enlarged, which is the same
    ends = 2 * 128 * width * 16 + 2 * 9 * width * 3 * 32**2
    assert g == convolutions + shortcuts + ends
    assert d == pytest.approx(2.16e9, rel=0.02)  # published; with shortcuts that pool first, some less


def test_a_line_adds_up(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    script.report("biggan_original", 32, 64)
    eight, many = capsys.readouterr().out.splitlines()
    # 4 updates of D and one of G: 4 x 4.207361 M + 4.304387 M parameters in float32; 7 batch norms.
    assert "85 MB 0.33 ms" in eight
    assert "84 x: 1.68 ms" in eight
    assert "84 x: 3.36 ms" in many
    compute, total = float(eight.split()[3]), float(eight.split()[-4])
    assert total == pytest.approx(compute + 0.33 + 1.68, abs=0.02)


def test_weights_are_counted(script: ModuleType) -> None:
    assert script.count(nn.Linear(3, 4)) == 16
