"""Counting operators and host waits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cifargan.bench.gate import small
from cifargan.bench.presets import compose, random_images
from cifargan.bench.profile import Counter, Profile, profile
from cifargan.bench.variants import Variant, prepare
from cifargan.training.speed import PLAIN, Switches

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("work", "waits"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: bool(x.sum() > 0), 1),
        (lambda x: x[torch.tensor([0, 2])], 0),
        (lambda x: x.sin() + 1, 0),
    ],
)
def test_host_waits(work: Callable[[Tensor], object], waits: int) -> None:
    x = torch.randn(4)
    with Counter() as counter:
        work(x)
    assert counter.host_waits == waits


def test_operators_are_counted_backward_passes_too() -> None:
    x = torch.randn(4, requires_grad=True)
    with Counter() as counter:
        y = x.sin()
    assert counter.operators == 1
    with Counter() as counter:
        torch.autograd.backward(y, torch.ones(4))
    assert counter.operators >= 2  # cos, and its product with what came in


def test_counters_that_lie_on_the_host_are_no_wait() -> None:
    step = torch.zeros(())
    with Counter(on_host={step.data_ptr()}) as counter:
        step.item()
        torch.ones(()).item()
    assert counter.host_waits == 1


def test_an_iteration_waits_for_nothing_and_its_operators_are_counted() -> None:
    config, images = small(compose("cdcgan_concat", "device=cpu")), random_images(16, image_size=32)
    gan, compiled = (
        Variant(name="g", precision="fp32", switches=switches) for switches in (PLAIN, Switches(fused=True))
    )
    plain, fused = (profile(prepare(each, config, images=images, device=CPU), CPU) for each in (gan, compiled))
    assert plain.host_waits == fused.host_waits == 0
    assert plain.operators is not None
    assert fused.operators is not None
    assert 100 < fused.operators < plain.operators
    assert plain.kernels is None


def test_compiled_code_is_not_counted() -> None:
    config, images = small(compose("cdcgan_concat", "device=cpu")), random_images(16, image_size=32)
    contestant = prepare(Variant(name="g", precision="fp32", switches=PLAIN), config, images=images, device=CPU)
    contestant.variant = Variant(name="c", precision="fp32", switches=Switches(compile="default"))
    assert profile(contestant, CPU) == Profile()
