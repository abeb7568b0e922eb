"""The equivalence gate: before anything is timed, cifargan and the reference must compute the same.

One whole iteration of both in float64, from equal weights and on equal inputs, every switch on that changes how it is
computed. What is exact in exact arithmetic must agree to rounding. And the gradients under bfloat16 autocast must point
where those of float32 point.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from cifargan.bench.presets import narrowed, random_images
from cifargan.bench.reference import build_reference, copy_weights
from cifargan.bench.trace import Replay, float64, largest_difference, record
from cifargan.build.gan import build_gan
from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.models.spectral import restart_power_iteration_
from cifargan.training.speed import Switches
from cifargan.training.step import GANStep

EXACT = 1e-10  # largest absolute difference in float64
# Adam divides by a gradient's size: the rounding of one that is zero in truth comes out lr / eps times as large.
UPDATED = 1e-8
ALIGNED = 0.01  # largest 1 - cosine of bfloat16's gradient and float32's
# Rounding carries some units across the kink of their ReLU, which turns their whole gradient on or off. In the deepest
# stack without shortcuts that sums up to 0.014; with a smooth unit (SiLU) in place of each ReLU the same net has 0.0003.
ALIGNED_OTHERWISE = {"dcgan64": 0.02}
ALL = Switches(channels_last=True, fused=True, batched_spectral_norm=True, fold_up=True, fold_down=True)
WIDTH = 16
BATCH = 4
ALIGNED_BATCH = 64  # one image's gradient is noisier than the sum that an update is made of
SHAKEN = 0.1  # standard deviation of what is added to every weight
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the gate.

    Attributes:
        name: what was compared.
        error: how far apart the two were.
        limit: how far they may be.
    """

    name: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether they are near enough; NaN is not."""
        return self.error <= self.limit


def gate(config: DictConfig) -> list[Check]:
    """All checks of a preset, narrow and on the CPU.

    Args:
        config: the composed configuration.
    """
    config = small(config)
    images = random_images(64, image_size=config.data.image_size)
    with float64():
        gan = shaken_gan(config, images, ALL)
        reference = build_reference(config, images=images, device=CPU)
        copy_weights(gan, reference)
        checks = exact_checks(gan, reference)
    return checks + aligned_checks(config, images)


def require(checks: Sequence[Check]) -> None:
    """Refuse to go on after a failed check.

    Raises:
        UserError: names every check that failed.
    """
    failed = [f"{check.name} ({check.error:.1e}, limit {check.limit:.0e})" for check in checks if not check.passed]
    if failed:
        raise UserError(f"cifargan and the reference differ, so nothing was timed: {', '.join(failed)}")


def exact_checks(gan: GANStep, reference: Any) -> list[Check]:
    """Play one iteration of both on equal inputs and compare all that came out of it; for float64.

    Args:
        gan: cifargan's, on the CPU.
        reference: the script's `Trainer` with the same weights.
    """
    batches = [gan.stream.next() for _ in range(gan.schedule.d_steps)]
    latents = [gan._latents(gan.schedule.batch_size) for _ in range(gan.schedule.d_steps + 1)]
    gan.stream = Replay(batches)  # type: ignore[assignment]
    gan._latents = Replay(latents).take  # type: ignore[method-assign]
    reference.real_batch = Replay(batches).take
    reference.latents = Replay(latents).take
    own = record(gan, gan.iterate, gan.ema.generator)
    theirs = record(reference, reference.iterate, reference.ema)
    return [
        Check(
            name=kind,
            error=largest_difference(own.values[kind], theirs.values[kind]),
            limit=UPDATED if "weights" in kind else EXACT,
        )
        for kind in sorted(own.values.keys() | theirs.values.keys())
    ]


def aligned_checks(config: DictConfig, images: ImageSet) -> list[Check]:
    """Compare the gradients under bfloat16 autocast with float32's, network by network."""
    found = {}
    for precision in ("fp32", "bf16"):
        settings = {"precision": precision, "trainer": {"d_steps": 1, "batch_size": ALIGNED_BATCH}}
        still = cast(DictConfig, OmegaConf.merge(config, settings))
        for part in ("generator", "discriminator"):
            # So that both networks of both precisions are judged by the same opponent.
            still.optimizer[part].lr = 1e-20
        gan = shaken_gan(still, images, ALL)
        torch.manual_seed(1)
        found[precision] = record(gan, gan.iterate, gan.ema.generator).values
    limit = ALIGNED_OTHERWISE.get(config.name, ALIGNED)
    checks = []
    for kind in (kind for kind in found["fp32"] if kind.startswith("gradients")):
        a, b = (torch.cat([value.flatten() for _, value in values[kind]]) for values in found.values())
        cosine = float(torch.cosine_similarity(a, b, dim=0))
        checks.append(Check(name=f"{kind} in bf16, 1 - cosine", error=1 - cosine, limit=limit))
    return checks


def small(config: DictConfig) -> DictConfig:
    """The same computation, narrow, and with all of its terms in effect from the first step."""
    config = narrowed(config, WIDTH)
    config.precision = "fp32"
    config.trainer.update({"batch_size": BATCH, "accumulate": 1, "d_steps": min(2, config.trainer.d_steps)})
    config.trainer.ema.start = 0
    if "start" in config.regularizer:
        config.regularizer.start = 0
    if "dropout" in config.model.discriminator:
        config.model.discriminator.dropout = 0.0
    return config


def shaken_gan(config: DictConfig, images: ImageSet, switches: Switches) -> GANStep:
    """A gan whose weights are nowhere special: a gain of zero would hide what it multiplies."""
    gan = build_gan(config, images=images, device=CPU, switches=switches)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in (gan.generator, gan.discriminator):
            for parameter in network.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise.to(parameter.dtype), alpha=SHAKEN)
            restart_power_iteration_(network)
    return gan
