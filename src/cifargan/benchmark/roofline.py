"""How much arithmetic an iteration is, and how fast this device could do arithmetic at best.

Work is counted on the reference: textbook order, every gradient that its steps compute. A trainer that reaches the same
weights with less arithmetic is credited with all of it, so its share of the roofline may pass 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from cifargan.benchmark.timing import seconds_of
from cifargan.training.precision import PrecisionName

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SIDE = {"cuda": 8192, "cpu": 1024}
_COPIED_BYTES = {"cuda": 2**31, "cpu": 2**27}


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """What the device can do at best.

    Attributes:
        flops: floating point operations a second of a large matrix product, for each precision that was measured.
        bytes: bytes a second that a large copy reads and writes.
    """

    flops: dict[str, float]
    bytes: float


def count_flops(work: Callable[[], object]) -> int:
    """Floating point operations of the matrix products and convolutions in a call, backward passes included."""
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return counter.get_total_flops()


def measure(device: torch.device, precisions: set[PrecisionName]) -> Roofline:
    """Measure the roofline here and now.

    Args:
        device: of which.
        precisions: number formats to multiply in; on CUDA `fp32` is TF32.
    """
    return Roofline(
        flops={name: matmul_rate(device, _DTYPES[name]) for name in sorted(precisions)}, bytes=copy_rate(device)
    )


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of a large square matrix product."""
    side = _SIDE.get(device.type, 1024)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        return 2 * side**3 / _best(lambda: a @ b, device)
    finally:
        matmul.fp32_precision = before


def copy_rate(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.ones(_COPIED_BYTES.get(device.type, 2**27) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest call of some: the roof is what has once been reached."""
    work()
    calls = 10 if device.type == "cuda" else 1
    return min(seconds_of(work, calls, device) / calls for _ in range(5))
