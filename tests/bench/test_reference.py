"""The reference stands alone, trains, and takes cifargan's weights."""

import ast
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifargan.bench import reference
from cifargan.bench.gate import small
from cifargan.bench.presets import compose, random_images
from cifargan.bench.reference import build_reference, presets, reference_module, reference_name, reference_path
from cifargan.errors import UserError
from cifargan.training.step import GANStep

CPU = torch.device("cpu")


def test_it_imports_torch_and_the_standard_library_alone() -> None:
    tree = ast.parse(reference_path().read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    tops = {name.split(".")[0] for name in names}
    assert "torch" in tops
    assert tops - {"torch"} <= sys.stdlib_module_names


def test_a_missing_reference_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reference, "reference_path", lambda: tmp_path / "none.py")
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
        ("body.2.weight", "body.2.weight"),
    ],
)
def test_names(own: str, theirs: str) -> None:
    assert reference_name(own) == theirs


def test_weights_of_another_shape_are_refused(pair: Callable[..., tuple[GANStep, Any]]) -> None:
    gan, _ = pair("dcgan")
    _, other = pair("cdcgan_cbn")
    with pytest.raises(RuntimeError, match="norms"):
        reference.copy_weights(gan, other)


@pytest.mark.parametrize("preset", [name for name in presets() if name in ("biggan_lecam_diffaug", "cdcgan_cbn")])
def test_an_iteration_moves_both_players_and_the_average(preset: str, pair: Callable[..., tuple[GANStep, Any]]) -> None:
    _, trainer = pair(preset)
    networks = (trainer.generator, trainer.discriminator, trainer.ema)
    before = [[p.detach().clone() for p in network.parameters()] for network in networks]
    trainer.iterate()
    for old, network in zip(before, networks, strict=True):
        assert any(not torch.equal(a, b) for a, b in zip(old, network.parameters(), strict=True))
        assert all(bool(p.isfinite().all()) for p in network.parameters())
    assert trainer.step == 1


def test_its_augmentation_is_cifargans() -> None:
    from cifargan.objectives.augment import DiffAugment

    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for policy in (["color"], ["translation"], ["cutout"], ["color", "translation", "cutout"]):
        torch.manual_seed(3)
        expected = DiffAugment(policy=policy)(x)
        torch.manual_seed(3)
        actual = reference_module().diffaugment(x, policy)
        torch.testing.assert_close(actual, expected)
        assert not torch.allclose(actual, x)


def test_autocast_reaches_its_networks() -> None:
    config = small(compose("cdcgan_concat", "device=cpu"))
    images = random_images(8, image_size=32)
    trainer = build_reference(config, images=images, device=CPU, autocast=torch.bfloat16)
    seen = []
    trainer.generator.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    trainer.iterate()
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in trainer.generator.parameters())
