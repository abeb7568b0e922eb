"""Which presets there are, how they are narrowed, and the script that takes their weights."""

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifargan.bench import presets
from cifargan.bench.gate import small
from cifargan.bench.presets import (
    build_reference,
    compose,
    copy_weights,
    narrowed,
    random_images,
    reference_module,
    reference_name,
    reference_path,
)
from cifargan.errors import UserError
from cifargan.objectives.augment import DiffAugment
from cifargan.schema import conf_dir
from cifargan.training.step import GANStep

CPU = torch.device("cpu")
Pairs = Callable[..., tuple[GANStep, Any]]


def test_every_preset_of_the_script_is_shipped() -> None:
    assert all(Path(conf_dir(), "experiment", f"{preset}.yaml").is_file() for preset in reference_module().PRESETS)
    assert compose("cdcgan_cbn", "device=cpu").name == "cdcgan_cbn"


@pytest.mark.parametrize(("preset", "message"), [("bigan", "did you mean biggan"), ("zzz", "choose from acbiggan, ")])
def test_another_preset_is_one_line(preset: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compose(preset)
    assert "\n" not in str(caught.value)


def test_narrowing_keeps_proportions() -> None:
    full = compose("biggan", "device=cpu")
    biggan = narrowed(full, 32).model
    assert (biggan.generator.channels, biggan.discriminator.channels) == (32, 16)
    assert narrowed(full, None) == full
    dense = narrowed(compose("dcgan_dense", "device=cpu"), 64).model
    assert (dense.generator.stem_channels, dense.generator.channels) == (128, 64)
    assert list(dense.discriminator.channels) == [32, 64, 64, 128]
    assert narrowed(compose("dcgan", "device=cpu"), 1).model.generator.base_channels == 8


def test_the_script_imports_torch_and_the_standard_library_alone() -> None:
    tree = ast.parse(reference_path().read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    tops = {name.split(".")[0] for name in names}
    assert "torch" in tops
    assert tops - {"torch"} <= sys.stdlib_module_names


def test_a_missing_script_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(presets, "reference_path", lambda: tmp_path / "none.py")
    reference_module.cache_clear()
    with pytest.raises(UserError, match="is missing"):
        reference_module()


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        ("blocks.0.conv1.parametrizations.weight.original", "blocks.0.conv1.weight"),
        ("head.embed.parametrizations.weight.0.u", "head.embed.u"),
        ("norms.2.layer.running_mean", "norms.2.running_mean"),
        ("layers.0.bias", "layers.0.bias"),
    ],
)
def test_names(own: str, theirs: str) -> None:
    assert reference_name(own) == theirs


def test_weights_of_another_shape_are_refused(pair: Pairs) -> None:
    gan, _ = pair("dcgan")
    _, other = pair("cdcgan_cbn")
    with pytest.raises(RuntimeError, match="norms"):
        copy_weights(gan, other)


def test_an_iteration_of_the_script_moves_both_networks_and_the_average(pair: Pairs) -> None:
    _, trainer = pair("biggan_lecam_diffaug")
    networks = (trainer.generator, trainer.discriminator, trainer.ema)
    before = [[p.detach().clone() for p in network.parameters()] for network in networks]
    trainer.iterate()
    for old, network in zip(before, networks, strict=True):
        assert any(not torch.equal(a, b) for a, b in zip(old, network.parameters(), strict=True))
        assert all(bool(p.isfinite().all()) for p in network.parameters())


@pytest.mark.parametrize("policy", [["color"], ["translation"], ["cutout"], ["color", "translation", "cutout"]])
def test_its_augmentation_is_cifargans(policy: list[Any]) -> None:
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.manual_seed(3)
    expected = DiffAugment(policy=policy)(x)
    torch.manual_seed(3)
    actual = reference_module().diffaugment(x, policy)
    torch.testing.assert_close(actual, expected)
    assert not torch.allclose(actual, x)


def test_autocast_reaches_its_networks() -> None:
    config = small(compose("cdcgan_concat", "device=cpu"))
    trainer = build_reference(config, images=random_images(8, image_size=32), device=CPU, autocast=torch.bfloat16)
    seen = []
    trainer.generator.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    trainer.iterate()
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in trainer.generator.parameters())
