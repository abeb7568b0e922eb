"""Which configurations are measured, and how they are narrowed."""

from pathlib import Path

import pytest
import torch

from cifargan.bench.presets import compose, narrowed, random_images
from cifargan.bench.reference import presets
from cifargan.errors import UserError
from cifargan.schema import conf_dir


def test_every_known_preset_is_shipped() -> None:
    assert {"biggan", "biggan_original", "biggan_lecam_diffaug", "dcgan", "cdcgan_concat"} <= set(presets())
    assert all(Path(conf_dir(), "experiment", f"{preset}.yaml").is_file() for preset in presets())
    assert compose("cdcgan_cbn", "device=cpu").name == "cdcgan_cbn"


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("bigan", "cifargan bench bigan: no such preset; did you mean biggan"),
        ("zzz", "cifargan bench zzz: no such preset; choose from acbiggan, "),
    ],
)
def test_others_are_one_line(preset: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(preset)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_narrowing_keeps_proportions() -> None:
    biggan = narrowed(compose("biggan", "device=cpu"), 32).model
    assert (biggan.generator.channels, biggan.discriminator.channels) == (32, 16)
    dense = narrowed(compose("dcgan_dense", "device=cpu"), 64).model
    assert (dense.generator.stem_channels, dense.generator.channels) == (128, 64)
    assert list(dense.discriminator.channels) == [32, 64, 64, 128]
    assert narrowed(compose("dcgan", "device=cpu"), 1).model.generator.base_channels == 8


def test_no_width_is_a_copy() -> None:
    config = compose("dcgan", "device=cpu")
    same = narrowed(config, None)
    assert same == config
    same.model.generator.base_channels = 1
    assert config.model.generator.base_channels == 64


def test_images_are_the_same_each_time() -> None:
    a, b = random_images(5, image_size=8), random_images(5, image_size=8)
    assert torch.equal(a.images, b.images)
    assert a.images.shape == (5, 3, 8, 8)
    assert a.num_classes == 10
