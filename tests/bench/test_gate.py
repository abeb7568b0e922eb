"""The gate passes equal computations and no others; bfloat16 keeps the direction of gradients."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from cifargan.bench import gate
from cifargan.bench.gate import Check, exact_checks
from cifargan.bench.presets import compose, random_images, reference_module
from cifargan.errors import UserError
from cifargan.models import resampling
from cifargan.models.spectral import SpectralNorm
from cifargan.training.speed import PLAIN
from cifargan.training.step import GANStep

Pairs = Callable[..., tuple[GANStep, Any]]
QUICK = ("biggan", "biggan_original", "dcgan", "cdcgan_concat")
BF16 = [("dcgan64", 0.02), ("biggan_original", 0.01)]
LINES = {
    *("images", "logits", "gradients of the generator", "gradients of the discriminator"),
    *("spectral vectors after the updates", "weights after the updates", "average of the weights"),
}


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize(
    "preset",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in reference_module().PRESETS],
)
def test_all_switches_compute_what_the_reference_computes(preset: str, pair: Pairs) -> None:
    checks = exact_checks(*pair(preset))
    assert failed(checks) == set()
    normalised = preset.startswith("biggan")
    assert {check.name for check in checks} == LINES - (set() if normalised else {"spectral vectors after the updates"})
    assert all(check.limit <= 1e-8 for check in checks)


def test_the_plain_trainer_does_too(pair: Pairs) -> None:
    assert failed(exact_checks(*pair("biggan_lecam_diffaug", speed=PLAIN))) == set()


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
    speed = replace(PLAIN, fold_up=forward == "up", fold_down=forward == "down")
    found = failed(exact_checks(*pair("biggan_original", speed=speed)))
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


def bf16_errors(preset: str) -> list[float]:
    """1 - cosine of the gradients under bfloat16 autocast and in float32, of D and G."""
    config = gate.small(compose(preset, "device=cpu"))
    found = []
    for precision in ("fp32", "bf16"):
        # The gradient of a batch is less noisy than that of a few images.
        settings = {"precision": precision, "trainer": {"d_steps": 1, "batch_size": 64}}
        still = cast(DictConfig, OmegaConf.merge(config, settings))
        for part in ("generator", "discriminator"):
            still.optimizer[part].lr = 1e-20  # so that G meets the same D in both precisions
        gan = gate.randomised_gan(still, random_images(64, image_size=config.data.image_size), gate.ALL)
        torch.manual_seed(1)
        found.append(gate.trace(gan, gan.ema.generator))
    kinds = ("gradients of the discriminator", "gradients of the generator")
    flat = [[torch.cat([value.flatten() for _, value in trace[kind]]) for trace in found] for kind in kinds]
    return [1 - float(torch.cosine_similarity(a, b, dim=0)) for a, b in flat]


# In the deepest stack without shortcuts more units change sign; see the next test.
@pytest.mark.parametrize(
    ("preset", "limit"),
    [("cdcgan_concat", 0.01), *(pytest.param(name, limit, marks=pytest.mark.slow) for name, limit in BF16)],
)
def test_gradients_in_bfloat16_have_the_direction_of_float32s(preset: str, limit: float) -> None:
    assert all(1e-7 < error < limit for error in bf16_errors(preset))  # and are not float32's


def test_what_bfloat16_turns_is_the_sign_of_units_at_their_kink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without kinks the same networks agree far better, so it is not the arithmetic that loses the rest."""
    kinked = bf16_errors("dcgan")
    monkeypatch.setattr("torch.nn.functional.relu", nn.functional.silu)
    monkeypatch.setattr(nn.LeakyReLU, "forward", lambda _, x: nn.functional.silu(x))
    assert all(smooth < error / 5 for smooth, error in zip(bf16_errors("dcgan"), kinked, strict=True))


def test_a_failed_check_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [
        Check(name=name, error=error, limit=1e-10) for name, error in (("a", 1e-12), ("b", 1e-6), ("c", math.nan))
    ]
    monkeypatch.setattr(gate, "exact_checks", lambda *_: checks)
    config = compose("dcgan", "device=cpu")
    with pytest.raises(UserError, match=r"b \(1\.0e-06, limit 1e-10\), c \(nan") as caught:
        gate.passed_gate(config)
    assert "a (" not in str(caught.value)
    monkeypatch.setattr(gate, "exact_checks", lambda *_: checks[:1])
    assert gate.passed_gate(config) == checks[:1]


def test_small_puts_every_term_into_effect() -> None:
    config = gate.small(compose("biggan_lecam", "device=cpu"))
    assert config.regularizer.lecam.start == config.trainer.ema.start == 0
    assert config.model.generator.channels == gate.WIDTH
    assert gate.small(compose("dcgan_dense", "device=cpu")).model.discriminator.dropout == 0


def test_shaken_weights_leave_no_gain_at_zero() -> None:
    config = gate.small(compose("biggan", "device=cpu"))
    gan = gate.randomised_gan(config, random_images(8, image_size=32), PLAIN)
    gammas = [value.detach() for name, value in gan.generator.named_parameters() if name.endswith("gamma")]
    assert len(gammas) == 1
    assert all(abs(float(gamma)) > 1e-3 for gamma in gammas)
    for module in gan.discriminator.modules():
        if isinstance(module, nn.utils.parametrize.ParametrizationList) and isinstance(module[0], SpectralNorm):
            matrix = module[0].matrix(module.original.detach())
            assert float(module[0].sigma(module.original).detach()) == pytest.approx(
                float(torch.linalg.matrix_norm(matrix, 2)), rel=0.1
            )
