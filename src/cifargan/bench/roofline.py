"""How much arithmetic an iteration is, and how fast this device could do arithmetic at best.

Work is counted on the reference: textbook order, every gradient that its steps compute. A trainer that reaches the same
weights with less arithmetic is credited with all of it, so its share of the roofline may pass 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cifargan.bench.timing import seconds_of
from cifargan.training.precision import PrecisionName

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SIDE = {"cuda": 8192, "cpu": 1024}
_TOUCH_NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view")
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


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums up the sizes of what operators read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if not (func.is_view or func.overloadpacket.__name__ in _TOUCH_NOTHING):
            self.bytes += sum(each.nbytes for each in tree_leaves((args, kwargs, found)) if isinstance(each, Tensor))
        return found


def count_traffic(work: Callable[[], object]) -> int:
    """Bytes that the operators of a call read and write if each fetches what it takes and stores what it gives.

    What caches keep and what kernels do in one go makes it less, workspaces make it more: an estimate, whatever the device.
    """
    traffic = _Traffic()
    with traffic:
        work()
    return traffic.bytes


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
