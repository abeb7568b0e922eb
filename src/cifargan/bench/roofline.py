"""The roofline: how much arithmetic and memory traffic an iteration is, and the device's highest rate of both.

Work is counted on the reference: textbook order, every gradient that its steps compute. A trainer that gets the same
weights with less arithmetic is credited with all of it, so its share of the roofline may exceed 1.
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
from cifargan.bench.variants import DTYPES

_MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}
_COPIED_BYTES = {"cuda": 2**31, "cpu": 2**27}
_NO_TRAFFIC = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view")


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """The device's highest rates.

    Attributes:
        flops: floating point operations a second of a large matrix product, for each precision.
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
    """Adds up the bytes of the arguments and results of operators."""

    bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if not (func.is_view or func.overloadpacket.__name__ in _NO_TRAFFIC):
            self.bytes += sum(each.nbytes for each in tree_leaves((args, kwargs, found)) if isinstance(each, Tensor))
        return found


def count_traffic(work: Callable[[], object]) -> int:
    """Bytes that the operators of a call read and write, if each reads its arguments from memory and writes its result.

    An estimate: caches and fused kernels save traffic, workspaces add some.
    """
    with _Traffic() as traffic:  # type: ignore[no-untyped-call]
        work()
    return int(traffic.bytes)


def measure(device: torch.device, precisions: set[str]) -> Roofline:
    """Measure the device's roofline for some number formats; on CUDA `fp32` is TF32."""
    side = _MATRIX_SIDE[device.type]
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    flops = {}
    try:
        for name in sorted(precisions):
            a, b = (torch.randn(side, side, device=device).to(DTYPES[name]) for _ in range(2))
            flops[name] = 2 * side**3 / _fastest(lambda a=a, b=b: a @ b, device)  # type: ignore[misc]
    finally:
        matmul.fp32_precision = before
    source = torch.ones(_COPIED_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return Roofline(flops=flops, bytes=2 * source.nbytes / _fastest(lambda: target.copy_(source), device))


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several calls."""
    work()
    calls = 10 if device.type == "cuda" else 1
    return min(seconds_of(work, calls, device) / calls for _ in range(5))
