"""The equivalence gate: cifargan and the plain reference must compute the same before anything is timed.

Both run one iteration in float64, from equal weights and on equal inputs, with every option on that changes how the
iteration is computed. What is equal in exact arithmetic must agree to rounding.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cifargan.bench.presets import build_reference, copy_weights, narrowed, random_images, reference_name
from cifargan.build import build_gan
from cifargan.config import parse
from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.models.spectral import restart_power_iteration_
from cifargan.training.speed import SpeedOptions
from cifargan.training.step import GANStep

EXACT = 1e-10  # largest absolute difference in float64
# Adam divides by a gradient's size, so the rounding error of a zero gradient grows to lr / eps times its size.
UPDATED = 1e-8
ALL = SpeedOptions(channels_last=True, fused=True, batched_spectral_norm=True, fold_up=True, fold_down=True)
WIDTH = 16
BATCH = 4
NOISE = 0.1  # standard deviation of the noise on every weight
CPU = torch.device("cpu")

Trace: TypeAlias = dict[str, list[tuple[str, Tensor]]]  # kind -> names (the reference's) and values, in order


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison of the gate: what was compared, the difference, and the largest that passes."""

    name: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the difference is small enough; NaN is not."""
        return self.error <= self.limit


def passed_gate(config: DictConfig) -> list[Check]:
    """The checks of a preset, with narrow networks on the CPU.

    Raises:
        UserError: some failed; it names them.
    """
    config = small(config)
    images = random_images(64, image_size=config.data.image_size)
    with float64():
        gan = randomised_gan(config, images, ALL)
        reference = build_reference(config, images=images, device=CPU)
        copy_weights(gan, reference)
        checks = exact_checks(gan, reference)
    failed = [f"{check.name} ({check.error:.1e}, limit {check.limit:.0e})" for check in checks if not check.passed]
    if failed:
        raise UserError(f"cifargan and the reference differ, so nothing was timed: {', '.join(failed)}")
    return checks


def exact_checks(gan: GANStep, reference: Any) -> list[Check]:
    """Run one float64 iteration of cifargan and of a reference with the same weights, and compare all results."""
    batches = [gan.stream.next() for _ in range(gan.schedule.d_steps)]
    latents = [gan._latents(gan.schedule.batch_size) for _ in range(gan.schedule.d_steps + 1)]
    gan.stream = SimpleNamespace(take=replay(batches), advance=lambda _: None)  # type: ignore[assignment]
    gan._latents = replay(latents)  # type: ignore[method-assign]
    reference.real_batch, reference.latents = replay(batches), replay(latents)
    own, theirs = trace(gan, gan.ema.generator), trace(reference, reference.ema)
    return [
        Check(
            name=kind,
            error=largest_difference(own[kind], theirs[kind]),
            limit=UPDATED if "weights" in kind else EXACT,
        )
        for kind in sorted(own.keys() | theirs.keys())
    ]


def small(config: DictConfig) -> DictConfig:
    """The same computation with narrow networks, and with all of its terms in effect from the first step."""
    config = narrowed(config, WIDTH)
    config.precision = "fp32"
    config.trainer.update({"batch_size": BATCH, "accumulate": 1, "d_steps": min(2, config.trainer.d_steps)})
    config.trainer.ema.start = 0
    for penalty in config.regularizer.values():
        if "start" in penalty:
            penalty.start = 0
    if "dropout" in config.model.discriminator:
        config.model.discriminator.dropout = 0.0
    return config


def randomised_gan(config: DictConfig, images: ImageSet, speed: SpeedOptions) -> GANStep:
    """Networks on the CPU with noise on every weight: a gain of zero would hide what it multiplies."""
    gan = build_gan(parse(config), images=images, device=CPU, speed=speed)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in (gan.generator, gan.discriminator):
            for parameter in network.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise.to(parameter.dtype), alpha=NOISE)
            restart_power_iteration_(network)
    return gan


def replay(pairs: Sequence[tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A function that returns the given pairs one by one."""
    remaining = iter(pairs)
    return lambda *_: next(remaining)


def trace(trainer: Any, average: nn.Module) -> Trace:
    """Run one iteration of cifargan or of the reference.

    Returns:
        Images, logits, gradients before each update, and the weights, singular vectors and average after it.
    """
    found: Trace = defaultdict(list)
    networks = {"generator": trainer.generator, "discriminator": trainer.discriminator}

    def note(kind: str, name: str, value: Tensor) -> None:
        found[kind].append((reference_name(name), value.detach().clone()))

    def note_gradients(name: str) -> None:
        for key, parameter in networks[name].named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            note(f"gradients of the {name}", key, gradient)

    def note_logits(*call: Any) -> None:
        note("logits", "", call[2] if isinstance(call[2], Tensor) else call[2].logits)

    hooks = (
        trainer.generator.register_forward_hook(lambda *call: note("images", "", call[2])),
        trainer.discriminator.register_forward_hook(note_logits),
        trainer.g_optimizer.register_step_pre_hook(lambda *_: note_gradients("generator")),
        trainer.d_optimizer.register_step_pre_hook(lambda *_: note_gradients("discriminator")),
    )
    torch.manual_seed(0)  # of the augmentation
    trainer.iterate()
    for hook in hooks:
        hook.remove()
    for name, network in networks.items():
        for key, value in network.named_parameters():
            note("weights after the updates", f"{name}.{key}", value)
        for key, value in network.named_buffers():
            if key.endswith((".u", ".v")):
                note("spectral vectors after the updates", f"{name}.{key}", value)
    for key, value in average.named_parameters():
        note("average of the weights", key, value)
    return found


def largest_difference(own: Sequence[tuple[str, Tensor]], theirs: Sequence[tuple[str, Tensor]]) -> float:
    """The largest absolute difference of tensors with equal names, in order; infinite where names or shapes differ."""
    a, b = (sorted(values, key=lambda pair: pair[0]) for values in (own, theirs))
    if [(name, value.shape) for name, value in a] != [(name, value.shape) for name, value in b]:
        return float("inf")
    return max(float((x - y).abs().max()) for (_, x), (_, y) in zip(a, b, strict=True))


class _Widen(TorchFunctionMode):
    """Makes `.float()`, which casts the outputs of autocast, return float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (torch.Tensor.double if func is torch.Tensor.float else func)(*args, **(kwargs or {}))


@contextmanager
def float64() -> Iterator[None]:
    """Inside the context, what is float32 otherwise is float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widen():
            yield
    finally:
        torch.set_default_dtype(default)
