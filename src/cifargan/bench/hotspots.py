"""Where the time of an iteration goes: its kernels on a GPU, its operators on a CPU, the costliest first."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode

LISTED = 12  # the rest is in the JSON
WATCHED = 5  # iterations


@dataclass(frozen=True, kw_only=True)
class Hotspot:
    """All calls of one kernel or operator in an iteration.

    Attributes:
        name: as the device's profiler has it.
        calls: how often.
        seconds: of all its calls; on a CPU of processor time.
    """

    name: str
    calls: float
    seconds: float


class Stopwatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Times every operator. On a CPU alone, where an operator has done its work when it returns."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        began = time.process_time()
        found = func(*args, **(kwargs or {}))
        self.seconds[func.overloadpacket.__name__].append(time.process_time() - began)
        return found


def hotspots(work: Callable[[], object], device: torch.device) -> list[Hotspot]:
    """Watch some iterations and tell of their mean.

    Args:
        work: an iteration, already warm; on a CPU nothing that is compiled, whose parts cannot be told apart.
        device: where it computes.
    """
    found = _of_kernels(work) if device.type == "cuda" else _of_operators(work)
    mean = [Hotspot(name=spot.name, calls=spot.calls / WATCHED, seconds=spot.seconds / WATCHED) for spot in found]
    return sorted(mean, key=lambda spot: spot.seconds, reverse=True)


def _of_operators(work: Callable[[], object]) -> list[Hotspot]:
    with Stopwatch() as watch:
        for _ in range(WATCHED):
            work()
    return [Hotspot(name=name, calls=len(each), seconds=sum(each)) for name, each in watch.seconds.items()]


def _of_kernels(work: Callable[[], object]) -> list[Hotspot]:
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for _ in range(WATCHED):
            work()
        torch.cuda.synchronize()
    return [
        Hotspot(name=event.key, calls=event.count, seconds=event.self_device_time_total / 1e6)
        for event in found.key_averages()
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
