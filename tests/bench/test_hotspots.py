"""Where the time of an iteration goes."""

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cifargan.bench import hotspots as module
from cifargan.bench.hotspots import Hotspot, Stopwatch, hotspots

CPU = torch.device("cpu")


def test_operators_of_an_iteration_forward_and_backward_the_costliest_first() -> None:
    weight = torch.randn(300, 300, requires_grad=True)

    def work() -> None:
        torch.autograd.backward((weight @ weight).relu().sum())

    found = hotspots(work, CPU)
    assert [spot.seconds for spot in found] == sorted((spot.seconds for spot in found), reverse=True)
    calls = {spot.name: spot.calls for spot in found}
    assert (calls["mm"], calls["relu"], calls["threshold_backward"]) == (
        3,
        1,
        1,
    )  # a product's gradient is two products


def test_seconds_are_the_clocks_and_a_mean_over_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "process_time", lambda: float(next(ticks)))
    x = torch.ones(3)
    assert hotspots(lambda: x.sin() + x.sin(), CPU) == [
        Hotspot(name="sin", calls=2, seconds=2.0),
        Hotspot(name="add", calls=1, seconds=1.0),
    ]
    assert next(ticks) == 2 * 3 * module.WATCHED


def test_it_computes_what_it_watches() -> None:
    x = torch.randn(4, 4)
    with Stopwatch():
        watched = x @ x
    with FlopCounterMode(display=False):
        assert torch.equal(watched, x @ x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_on_a_gpu() -> None:
    a = torch.randn(512, 512, device="cuda")
    found = hotspots(lambda: (a @ a).relu(), torch.device("cuda"))
    assert found
    assert sum(spot.calls for spot in found) >= 2
    assert all(spot.seconds > 0 for spot in found)
