"""What an iteration asks of the host: operators and launches, kernels, and moments at which it waits for the device."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity
from torch.utils._python_dispatch import TorchDispatchMode

from cifargan.bench.variants import Contestant

# Operators that need a value on the host, to return it or to know the shape of their result.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One iteration; None: not counted.

    Attributes:
        operators: ATen operators dispatched.
        kernels: kernels, copies and fillings that ran on the device.
        launches: calls by which the host started them; a CUDA graph is one.
        host_waits: moments at which the host waits for the device, or would if there were one.
    """

    operators: int | None = None
    kernels: int | None = None
    launches: int | None = None
    host_waits: int | None = None


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators, and those among them that would make the host wait for a GPU.

    Args:
        on_host: addresses of tensors that lie on the host whatever the device, such as step counters.
    """

    def __init__(self, on_host: set[int] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_host = on_host or set()
        self.operators = 0
        self.host_waits = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.operators += 1
        name = func.overloadpacket.__name__
        subject = args[0] if args and isinstance(args[0], Tensor) else None
        if name in WAITS and (subject is None or subject.data_ptr() not in self.on_host):
            self.host_waits += 1
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
        # Indexing by a mask looks for its nonzero entries inside the operator.
        self.host_waits += any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        return func(*args, **(kwargs or {}))


def profile(contestant: Contestant, device: torch.device) -> Profile:
    """Look at one iteration of a warm contestant."""
    if device.type == "cuda":
        kernels, launches = count_kernels(contestant.iterate)
        return Profile(kernels=kernels, launches=launches, host_waits=count_synchronisations(contestant.iterate))
    switches = contestant.variant.switches
    if switches is not None and switches.compile != "off":
        return Profile()  # compiled code dispatches nothing that could be counted
    return count_operators(contestant)


def count_operators(contestant: Contestant) -> Profile:
    """Operators of one iteration, and the host waits among them."""
    player = contestant.player
    counters = {
        state["step"].data_ptr()
        for optimizer in (player.g_optimizer, player.d_optimizer)
        for state in optimizer.state.values()
        if isinstance(state.get("step"), Tensor)
    }
    with Counter(on_host=counters) as counter:
        contestant.iterate()
    return Profile(operators=counter.operators, host_waits=counter.host_waits)


def count_kernels(work: Callable[[], object]) -> tuple[int, int]:
    """Kernels that a call runs on a CUDA device, and launches that it takes."""
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        work()
        torch.cuda.synchronize()
    events = list(found.events() or ())
    # Names that a program gives to stretches of time are shown on the device's side too.
    kernels = sum(event.device_type == DeviceType.CUDA and not event.is_user_annotation for event in events)
    launches = sum(event.name.startswith(LAUNCHES) for event in events)
    return kernels, launches


def count_synchronisations(work: Callable[[], object]) -> int:
    """How often a call makes the host wait for a CUDA device."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchronizing" in str(warning.message) for warning in caught)
