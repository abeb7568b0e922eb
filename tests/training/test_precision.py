"""Number formats: what auto means, what autocast casts, and the loss scaling of float16."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cifargan.errors import UserError
from cifargan.training.optimizers import adam
from cifargan.training.precision import Precision, PrecisionName, resolve
from cifargan.training.step import GANStep

CPU = torch.device("cpu")


@pytest.mark.parametrize(("supported", "name"), [(True, "bf16"), (False, "fp16")])
def test_auto_asks_the_gpu_and_is_float32_without_one(
    monkeypatch: pytest.MonkeyPatch, supported: bool, name: str
) -> None:
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return supported or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert resolve("auto", torch.device("cuda")) == name
    assert resolve("fp32", torch.device("cuda")) == "fp32"
    assert resolve("auto", CPU) == Precision("auto", CPU).name == "fp32"


def test_float16_without_cuda_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="precision=fp16 needs a CUDA device") as error:
        Precision("fp16", CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_changes_products_and_no_weights(name: PrecisionName, dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 4)
    with Precision(name, CPU).autocast():
        assert layer(torch.ones(2, 4)).dtype == dtype
    assert layer.weight.dtype == torch.float32


def scaled(scale: float) -> Precision:
    """The arithmetic of fp16 on the CPU, whose autocast knows bfloat16 only."""
    precision = Precision("fp32", CPU)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    return precision


@pytest.mark.parametrize(
    ("precision", "scale", "figures"),
    [(Precision("fp32", CPU), 1.0, {}), (scaled(1024.0), 1024.0, {"loss_scale": 1024.0})],
)
def test_a_step_updates_returns_the_norm_and_drops_the_gradients_whatever_the_scale(
    precision: Precision, scale: float, figures: dict[str, float]
) -> None:
    layer = nn.Linear(2, 1)
    nn.init.zeros_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    precision.backward(layer(torch.tensor([[3.0, 4.0]])).sum())
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[3.0 * scale, 4.0 * scale]]
    norm = precision.step(optimizer)
    assert norm.shape == ()
    assert float(norm) == pytest.approx(26.0**0.5)  # of (3, 4) for the weight and 1 for the bias
    assert layer.weight.tolist() == [[-3.0, -4.0]]
    assert all(p.grad is None for p in layer.parameters())
    assert precision.figures() == figures


def test_an_overflow_skips_the_update_lowers_the_scale_and_is_no_divergence() -> None:
    layer = nn.Linear(2, 1)
    before = layer.weight.detach().clone()
    precision, optimizer = scaled(1024.0), torch.optim.SGD(layer.parameters(), lr=1.0)
    precision.backward(layer(torch.ones(1, 2)).sum() * torch.inf)
    assert torch.isfinite(precision.step(optimizer))
    assert torch.equal(layer.weight, before)
    assert precision.figures() == {"loss_scale": 512.0}


def test_several_discriminator_updates_work_with_loss_scaling(new_gan: Callable[..., GANStep]) -> None:
    plain, scaling = new_gan(d_steps=3), new_gan(d_steps=3)
    scaling.precision = scaled(256.0)
    for gan in (plain, scaling):
        torch.manual_seed(1)
        gan.iterate()
        gan.iterate()
    for network in ("discriminator", "generator"):
        a, b = (list(getattr(gan, network).parameters()) for gan in (plain, scaling))
        torch.testing.assert_close(a, b)


def test_the_scale_and_its_history_survive_a_round_trip() -> None:
    first, parameter = scaled(1024.0), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)

    def update(precision: Precision) -> None:
        precision.backward(parameter.sum())
        precision.step(optimizer)

    update(first)
    update(first)
    second = scaled(2.0)
    second.load_state_dict(first.state_dict())
    update(second)  # the third good update in a row, so the scale doubles
    assert second.figures() == {"loss_scale": 2048.0}
    # A run that resumes in another format starts without one.
    Precision("bf16", CPU).load_state_dict(first.state_dict())
    first.load_state_dict(Precision("bf16", CPU).state_dict())
    assert first.figures() == {"loss_scale": 1024.0}


class HostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often the host reads a number from a tensor."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))


def test_a_fused_update_asks_the_host_nothing_about_the_loss_scale() -> None:
    """So that an iteration in fp16 can be captured; an update that is not fused reads from the host."""
    weight = nn.Parameter(torch.ones(3))
    reads = {}
    for fused in (True, False):
        precision, optimizer = scaled(1024.0), adam([weight], fused=fused)
        for factor in (1.0, torch.inf):  # the first update makes the moments
            precision.backward(weight.sum() * factor)
            host = HostReads()  # type: ignore[no-untyped-call]
            with host:
                precision.step(optimizer)
        reads[fused] = host.count
        assert precision.figures() == {"loss_scale": 512.0}
    assert reads[True] == 0
    assert reads[False] > 0


def test_a_fused_update_takes_the_loss_scale_out_and_skips_an_overflow() -> None:
    weight, twin = (nn.Parameter(torch.tensor([3.0, -4.0])) for _ in range(2))
    plain, scaling = Precision("fp32", CPU), scaled(1024.0)
    # With so large an epsilon the size of a gradient matters to Adam.
    plain_adam, scaling_adam = (adam([each], lr=0.1, eps=1.0, fused=True) for each in (weight, twin))
    for factor in (1.0, 2.0, 0.5):
        plain.backward(weight.square().sum() * factor)
        scaling.backward(twin.square().sum() * factor)
        assert float(scaling.step(scaling_adam)) == pytest.approx(float(plain.step(plain_adam)))
        torch.testing.assert_close(twin, weight)
        scaling.backward(twin.square().sum() * torch.inf)
        assert float(scaling.step(scaling_adam)) == 0.0
        torch.testing.assert_close(twin, weight)


def test_what_a_step_changes_on_the_device_is_known() -> None:
    precision, weight = scaled(1024.0), nn.Parameter(torch.ones(1))
    optimizer = adam([weight], fused=True)
    assert precision.tensors() == []
    for _ in range(2):
        precision.backward(weight.sum())
        precision.step(optimizer)
    before = [tensor.clone() for tensor in precision.tensors()]
    precision.backward(weight.sum() * torch.inf)
    precision.step(optimizer)
    for tensor, value in zip(precision.tensors(), before, strict=True):
        tensor.copy_(value)
    precision.backward(weight.sum())
    precision.step(optimizer)  # the third good update in a row, so the scale doubles
    assert precision.figures() == {"loss_scale": 2048.0}
    assert Precision("bf16", CPU).tensors() == []
