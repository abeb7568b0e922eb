"""What one iteration computes, noted in a form that does not depend on who computes it."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cifargan.bench.reference import reference_name


@dataclass(kw_only=True)
class Trace:
    """What one iteration computed, under names that do not depend on who computed it."""

    values: dict[str, list[tuple[str, Tensor]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, name: str, value: Tensor) -> None:
        """Note one tensor."""
        self.values[kind].append((name, value.detach().clone()))


class Replay:
    """Hands out what was drawn before, in order; stands in for a stream of images."""

    def __init__(self, drawn: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._drawn = iter(drawn)

    def advance(self, batches: int) -> None:
        """Nothing has to be prepared."""

    def take(self, n: int = 0) -> tuple[Tensor, Tensor]:
        """The next pair, whatever number was asked for."""
        del n
        return next(self._drawn)


def record(player: Any, iterate: Callable[[], object], average: nn.Module) -> Trace:
    """Run one iteration and note images, logits, gradients, vectors and weights.

    Args:
        player: has `generator`, `discriminator`, `g_optimizer`, `d_optimizer`.
        iterate: plays one iteration.
        average: the average of the generator.
    """
    trace, handles = Trace(), []
    networks = {"generator": player.generator, "discriminator": player.discriminator}
    handles.append(player.generator.register_forward_hook(lambda *call: trace.add("images", "", call[2])))
    handles.append(player.discriminator.register_forward_hook(lambda *call: trace.add("logits", "", _logits(call[2]))))
    for (name, network), optimizer in zip(networks.items(), (player.g_optimizer, player.d_optimizer), strict=True):

        def note(*_: Any, name: str = name, network: nn.Module = network) -> None:
            for key, parameter in network.named_parameters():
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                trace.add(f"gradients of the {name}", reference_name(key), gradient)

        handles.append(optimizer.register_step_pre_hook(note))
    torch.manual_seed(0)  # of the augmentation
    iterate()
    for handle in handles:
        handle.remove()
    for name, network in networks.items():
        for key, value in network.named_parameters():
            trace.add("weights after the updates", f"{name}.{reference_name(key)}", value)
        for key, value in network.named_buffers():
            if key.endswith((".u", ".v")):
                trace.add("spectral vectors after the updates", f"{name}.{reference_name(key)}", value)
    for key, value in average.named_parameters():
        trace.add("average of the weights", reference_name(key), value)
    return trace


def _logits(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def largest_difference(own: Sequence[tuple[str, Tensor]], theirs: Sequence[tuple[str, Tensor]]) -> float:
    """The largest absolute difference of tensors of equal names; infinite where names or shapes differ.

    Several tensors of one name are compared in order.
    """
    a, b = (sorted(values, key=lambda pair: pair[0]) for values in (own, theirs))
    if [(name, value.shape) for name, value in a] != [(name, value.shape) for name, value in b]:
        return float("inf")
    return max(float((x - y).abs().max()) for (_, x), (_, y) in zip(a, b, strict=True))


class _Widen(TorchFunctionMode):
    """Turns `.float()`, with which losses and images leave autocast, into `.double()`."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (torch.Tensor.double if func is torch.Tensor.float else func)(*args, **(kwargs or {}))


@contextmanager
def float64() -> Iterator[None]:
    """While entered, what is float32 otherwise is float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widen():
            yield
    finally:
        torch.set_default_dtype(default)
