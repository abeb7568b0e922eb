"""The gate opens for what is equal and stays shut for everything else."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifargan.bench import gate
from cifargan.bench.gate import Check, exact_checks
from cifargan.bench.presets import compose, random_images
from cifargan.bench.reference import presets
from cifargan.build.gan import build_gan
from cifargan.errors import UserError
from cifargan.models import resampling
from cifargan.models.spectral import SpectralNorm
from cifargan.training.speed import PLAIN
from cifargan.training.step import GANStep

Pairs = Callable[..., tuple[GANStep, Any]]
QUICK = ("biggan", "biggan_original", "dcgan", "cdcgan_concat")
LINES = {
    *("images", "logits", "gradients of the generator", "gradients of the discriminator"),
    *("spectral vectors after the updates", "weights after the updates", "average of the weights"),
}


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in presets()]
)
def test_all_switches_compute_what_the_reference_computes(preset: str, pair: Pairs) -> None:
    checks = exact_checks(*pair(preset))
    assert failed(checks) == set()
    normalised = preset.startswith("biggan")
    assert {check.name for check in checks} == LINES - (set() if normalised else {"spectral vectors after the updates"})
    assert all(check.limit <= 1e-8 for check in checks)


def test_the_plain_trainer_does_too(pair: Pairs) -> None:
    assert failed(exact_checks(*pair("biggan_lecam_diffaug", switches=PLAIN))) == set()


def add(tensor: Tensor, amount: float = 1e-6) -> None:
    with torch.no_grad():
        tensor[(0,) * tensor.ndim] += amount


def test_a_wrong_weight_of_the_generator_fails(pair: Pairs) -> None:
    gan, reference = pair("biggan_original")
    add(gan.generator.get_parameter("blocks.1.conv1.parametrizations.weight.original"))
    assert failed(exact_checks(gan, reference)) >= {"images", "logits", "gradients of the generator"}


def test_a_wrong_weight_of_the_discriminator_fails(pair: Pairs) -> None:
    gan, reference = pair("dcgan")
    add(gan.discriminator.get_parameter("body.2.weight"))
    found = failed(exact_checks(gan, reference))
    assert found >= {"logits", "gradients of the discriminator", "gradients of the generator"}


@pytest.mark.parametrize("vector", ["u", "v"])
def test_a_wrong_spectral_vector_fails(pair: Pairs, vector: str) -> None:
    gan, reference = pair("biggan_original")
    add(gan.discriminator.get_buffer(f"body.0.conv2.parametrizations.weight.0.{vector}"))
    assert "logits" in failed(exact_checks(gan, reference))


def test_a_power_iteration_too_few_fails(pair: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    gan, reference = pair("biggan_original")
    monkeypatch.setattr("cifargan.training.step.power_iteration_", lambda *_, **__: None)
    assert "spectral vectors after the updates" in failed(exact_checks(gan, reference))


@pytest.mark.parametrize(("forward", "lines"), [("up", {"images", "logits"}), ("down", {"logits"})])
def test_a_wrong_fold_fails(pair: Pairs, monkeypatch: pytest.MonkeyPatch, forward: str, lines: set[str]) -> None:
    right = resampling._sums_of_neighbours
    monkeypatch.setattr(resampling, "_sums_of_neighbours", lambda kernel: right(kernel) * (1 + 1e-4))
    switches = replace(PLAIN, fold_up=forward == "up", fold_down=forward == "down")
    found = failed(exact_checks(*pair("biggan_original", switches=switches)))
    assert lines <= found
    assert ("images" in found) == (forward == "up")


def test_another_learning_rate_shows_in_the_weights(pair: Pairs) -> None:
    gan, reference = pair("cdcgan_concat")
    reference.g_optimizer.param_groups[0]["lr"] *= 1.01
    assert failed(exact_checks(gan, reference)) == {"weights after the updates", "average of the weights"}


def test_another_average_shows_in_the_average(pair: Pairs) -> None:
    gan, reference = pair("biggan_original")
    reference.trainer["ema"]["decay"] = 0.99
    assert failed(exact_checks(gan, reference)) == {"average of the weights"}


def test_bfloat16_points_where_float32_points() -> None:
    config = gate.small(compose("cdcgan_concat", "device=cpu"))
    checks = gate.aligned_checks(config, random_images(64, image_size=32))
    assert [check.name.split(" in ")[0] for check in checks] == [
        "gradients of the discriminator",
        "gradients of the generator",
    ]
    assert all(1e-7 < check.error < gate.ALIGNED for check in checks)  # neither astray nor float32 all along


def test_what_bfloat16_turns_is_the_sign_of_units_at_their_kink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without kinks the same nets agree far better, so it is not the arithmetic that loses the rest."""
    config = gate.small(compose("dcgan", "device=cpu"))
    images = random_images(64, image_size=32)
    kinked = gate.aligned_checks(config, images)
    monkeypatch.setattr("torch.nn.functional.relu", nn.functional.silu)
    monkeypatch.setattr(nn.LeakyReLU, "forward", lambda _, x: nn.functional.silu(x))
    smooth = gate.aligned_checks(config, images)
    assert all(after.error < before.error / 5 for before, after in zip(kinked, smooth, strict=True))


def test_gradients_that_point_elsewhere_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a network's own precision breaks it: here, a loss whose sign autocast turns."""

    def build(config: Any, **settings: Any) -> GANStep:
        gan = build_gan(config, **settings)
        if config.precision == "bf16":
            gan.discriminator.register_forward_hook(lambda _, __, output: output._replace(logits=-output.logits))
        return gan

    monkeypatch.setattr(gate, "build_gan", build)
    config = gate.small(compose("dcgan", "device=cpu"))
    checks = gate.aligned_checks(config, random_images(64, image_size=32))
    assert len(failed(checks)) == 2


def test_one_line_says_what_failed() -> None:
    good, bad, lost = (
        Check(name=name, error=error, limit=1e-10) for name, error in (("a", 1e-12), ("b", 1e-6), ("c", float("nan")))
    )
    gate.require([good])
    with pytest.raises(UserError, match=r"b \(1\.0e-06, limit 1e-10\), c \(nan") as caught:
        gate.require([good, bad, lost])
    assert "a (" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_small_puts_every_term_into_effect() -> None:
    config = gate.small(compose("biggan_lecam", "device=cpu"))
    assert config.regularizer.start == config.trainer.ema.start == 0
    assert config.model.generator.channels == gate.WIDTH
    assert gate.small(compose("dcgan_dense", "device=cpu")).model.discriminator.dropout == 0


def test_shaken_weights_leave_no_gain_at_zero() -> None:
    config = gate.small(compose("biggan", "device=cpu"))
    gan = gate.shaken_gan(config, random_images(8, image_size=32), PLAIN)
    gammas = [value.detach() for name, value in gan.generator.named_parameters() if name.endswith("gamma")]
    assert len(gammas) == 1
    assert all(abs(float(gamma)) > 1e-3 for gamma in gammas)
    for module in gan.discriminator.modules():
        if isinstance(module, nn.utils.parametrize.ParametrizationList) and isinstance(module[0], SpectralNorm):
            matrix = module[0].matrix(module.original.detach())
            assert float(module[0].sigma(module.original).detach()) == pytest.approx(
                float(torch.linalg.matrix_norm(matrix, 2)), rel=0.1
            )
