"""Who takes part: the reference, the plain trainer, the trainer with one switch more each time, and all switches but one."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from cifargan.bench.reference import build_reference, copy_weights
from cifargan.build.gan import build_gan
from cifargan.data.sources import ImageSet
from cifargan.training.precision import PrecisionName
from cifargan.training.rng import use_tf32
from cifargan.training.speed import PLAIN, Switches

WARM_UP = {"cuda": 5, "cpu": 2}  # iterations; compiling, recording and choosing algorithms are over after them
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to compute the same iteration.

    Attributes:
        name: what the table calls it.
        precision: number format of the forward passes.
        switches: of the trainer; None: this is the reference.
        tf32: whether float32 products may round their factors to TF32; only CUDA devices do.
    """

    name: str
    precision: PrecisionName
    switches: Switches | None = None
    tf32: bool = False


@dataclass(kw_only=True)
class Contestant:
    """A variant that is built and warm.

    Attributes:
        variant: which.
        player: the gan, or the reference's trainer.
        iterate: plays one iteration.
        seconds: a first estimate of what an iteration takes.
        start_seconds: wall time from the first iteration until all is compiled, recorded and chosen.
        peak_bytes: most memory that it held on the device at once, from building on; None without CUDA.
    """

    variant: Variant
    player: Any
    iterate: Callable[[], object] = field(repr=False)
    seconds: float
    start_seconds: float
    peak_bytes: int | None


def variants(device: torch.device, *, bf16: bool, compiled: bool) -> list[Variant]:
    """The contestants on a device, the baseline first.

    Args:
        device: where they will run.
        bf16: whether to include bfloat16 autocast.
        compiled: whether to include torch.compile, which takes minutes.
    """
    cuda = device.type == "cuda"
    base = Switches(tf32=cuda)
    rungs: list[tuple[str, dict[str, Any]]] = [
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
    found.append(Variant(name="cifargan, plain", precision="fp32", switches=base, tf32=cuda))
    for name, changes in rungs:
        found.append(_changed(found[-1], f"+ {name}", changes))
    found[-1] = replace(found[-1], name=f"{found[-1].name} = all")
    if cuda:
        full = found[-1]
        # Folding is two switches, which a backend may like one of.
        singles = [(name.replace("_", " "), {name: True}) for name in ("fold_up", "fold_down")]
        for name, changes in rungs + singles:
            off = {key: getattr(Switches(), key, "fp32") for key in changes}
            found.append(_changed(full, f"all but {name}", off))
    return found


def _changed(variant: Variant, name: str, changes: dict[str, Any]) -> Variant:
    """Another variant with some switches, or the precision, set otherwise."""
    switches = {key: value for key, value in changes.items() if key != "precision"}
    assert variant.switches is not None  # noqa: S101 - only the trainer has switches
    return replace(
        variant,
        name=name,
        precision=changes.get("precision", variant.precision),
        switches=replace(variant.switches, **switches),
    )


def has_bf16_units(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 numbers itself, rather than widening them first."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # torch has no public ones
    return device.type == "cpu" and any(getattr(torch.cpu, test, lambda: False)() for test in tests)


def prepare(variant: Variant, config: DictConfig, *, images: ImageSet, device: torch.device) -> Contestant:
    """Build a variant and run it warm.

    Raises:
        torch.OutOfMemoryError: it does not fit beside what is on the device.
    """
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if cuda else 0
    player = _player(variant, config, images=images, device=device)
    use_tf32(variant.tf32)
    started = time.perf_counter()
    for _ in range(WARM_UP.get(device.type, 2)):
        last = time.perf_counter()
        player.iterate()
        if cuda:
            torch.cuda.synchronize(device)
    ended = time.perf_counter()
    return Contestant(
        variant=variant,
        player=player,
        iterate=player.iterate,
        seconds=ended - last,
        start_seconds=ended - started,
        peak_bytes=torch.cuda.max_memory_allocated(device) - before if cuda else None,
    )


def _player(variant: Variant, config: DictConfig, *, images: ImageSet, device: torch.device) -> Any:
    if variant.switches is None:
        reference = build_reference(config, images=images, device=device, autocast=_DTYPES[variant.precision])
        # It leaves its weights as PyTorch draws them, which is no start for a GAN: numbers could leave their range.
        copy_weights(build_gan(config, images=images, device=device, switches=PLAIN), reference)
        return reference
    own = cast(DictConfig, OmegaConf.merge(config, {"precision": variant.precision}))
    return build_gan(own, images=images, device=device, switches=variant.switches)
