"""The variants that are timed: the reference, the trainer with one more option each time, and with all options but one."""

import time
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from cifargan.bench.presets import build_reference, copy_weights
from cifargan.build import build_gan
from cifargan.config import parse
from cifargan.data.sources import ImageSet
from cifargan.training.precision import PrecisionName
from cifargan.training.speed import PLAIN, SpeedOptions
from cifargan.training.state import use_tf32

WARM_UP = {"cuda": 5, "cpu": 2}  # iterations in which everything is compiled, captured and chosen
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to compute the same iteration."""

    name: str
    precision: PrecisionName
    speed: SpeedOptions | None = None  # the trainer's options; None: this is the reference
    tf32: bool = False  # whether float32 convolutions on CUDA may use it

    def changed(self, name: str, changes: dict[str, Any]) -> "Variant":
        """This variant of the trainer with another name, and other options or another precision."""
        options = {key: value for key, value in changes.items() if key != "precision"}
        speed = replace(self.speed or PLAIN, **options)
        return replace(self, name=name, precision=changes.get("precision", self.precision), speed=speed)


@dataclass(kw_only=True)
class Warm:
    """A variant that is built and has run its first iterations."""

    variant: Variant
    trainer: Any  # a `GANStep` or the reference's `Trainer`: `trainer.iterate()` runs one iteration
    seconds: float  # of its last iteration
    start_seconds: float  # of its first iterations
    peak_bytes: int | None  # of device memory, from building on; None without CUDA


def variants(device: torch.device, *, bf16: bool, compiled: bool) -> list[Variant]:
    """The variants for a device, the baseline first; `bf16` and `compiled` add bfloat16 autocast and torch.compile."""
    cuda = device.type == "cuda"
    steps: list[tuple[str, dict[str, Any]]] = [
        ("batched spectral norm", {"batched_spectral_norm": True}),
        ("folded up- and downsampling", {"fold_up": True, "fold_down": True}),
        ("fused optimiser", {"fused": True}),
        ("channels last", {"channels_last": True}),
        *([("bf16", {"precision": "bf16"})] if bf16 else []),
        *([("compile", {"compile": "default"})] if compiled else []),
        *([("graph", {"graph": True})] if cuda else []),
    ]
    found = [Variant(name=f"reference, {'TF32' if cuda else 'fp32'}", precision="fp32", tf32=cuda)]
    if bf16:
        found.append(Variant(name="reference, bf16", precision="bf16", tf32=cuda))
    found.append(Variant(name="cifargan, plain", precision="fp32", speed=SpeedOptions(tf32=cuda), tf32=cuda))
    for name, changes in steps:
        found.append(found[-1].changed(f"+ {name}", changes))
    found[-1] = full = replace(found[-1], name=f"{found[-1].name} = all")
    for name, changes in steps if cuda else []:
        off = {key: getattr(PLAIN, key, "fp32") for key in changes}
        found.append(full.changed(f"all but {name}", off))
    return found


def has_bf16_units(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 numbers directly instead of widening them first."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # torch has no public ones
    return device.type == "cpu" and any(getattr(torch.cpu, test, lambda: False)() for test in tests)


def warm(variant: Variant, config: DictConfig, *, images: ImageSet, device: torch.device) -> Warm:
    """Build a variant and run its first iterations.

    Raises:
        torch.OutOfMemoryError: it does not fit beside what is on the device.
    """
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if cuda else 0
    trainer = _build(variant, config, images=images, device=device)
    use_tf32(variant.tf32)
    times = [time.perf_counter()]
    for _ in range(WARM_UP[device.type]):
        trainer.iterate()
        if cuda:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())
    return Warm(
        variant=variant,
        trainer=trainer,
        seconds=times[-1] - times[-2],
        start_seconds=times[-1] - times[0],
        peak_bytes=torch.cuda.max_memory_allocated(device) - before if cuda else None,
    )


def _build(variant: Variant, config: DictConfig, *, images: ImageSet, device: torch.device) -> Any:
    if variant.speed is not None:
        own = cast(DictConfig, OmegaConf.merge(config, {"precision": variant.precision}))
        return build_gan(parse(own), images=images, device=device, speed=variant.speed)
    autocast = None if variant.precision == "fp32" else DTYPES[variant.precision]
    reference = build_reference(config, images=images, device=device, autocast=autocast)
    # PyTorch's default initialisation can make a GAN diverge at once.
    copy_weights(build_gan(parse(config), images=images, device=device, speed=PLAIN), reference)
    return reference
