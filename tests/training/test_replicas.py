"""Two processes that share a batch, against one that has it to itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cifargan.bench.gate import float64
from cifargan.bench.presets import compose, narrowed, random_images
from cifargan.build import build_gan
from cifargan.config import parse
from cifargan.models.batch_norm import BatchNorm2d
from cifargan.training.speed import SpeedOptions

InProcesses = Callable[..., list[Any]]
CPU = torch.device("cpu")
STEPS = 50


def trained(recipe: str, accumulate: int, *overrides: str) -> dict[str, Any]:
    """Fifty iterations in float64, in which rounding errors stay small."""
    config = narrowed(compose(recipe, "device=cpu", "precision=fp32", *overrides), 8)
    config.data.image_size = 16 if "biggan" in recipe else 32
    if "biggan" in recipe:
        config.model.generator.update({"latent_dim": 9, "attention": [8], "class_embedding_dim": 4})
        config.model.discriminator.attention = [8]
    config.trainer.update({"batch_size": 8, "accumulate": accumulate, "d_steps": 2 if "biggan" in recipe else 1})
    config.trainer.ema.update({"decay": 0.9, "start": 2})
    for penalty in config.regularizer.values():
        penalty.start = 2
    images = random_images(30, image_size=config.data.image_size)  # an epoch ends every few iterations
    with float64():
        gan = build_gan(parse(config), images=images, device=CPU, speed=SpeedOptions(batched_spectral_norm=True))
        metrics = [gan.iterate() for _ in range(STEPS)][-1]
    state = gan.state()
    weights = {key: state[key] for key in ("generator", "discriminator", "ema", "objective")}
    return {"weights": weights, "rng": state["rng"]["cpu"], "stream": state["stream"], "metrics": metrics}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "accumulate", "overrides"),
    [
        ("cdcgan_cbn", 1, ()),
        ("biggan_lecam_diffaug", 2, ()),
        ("acbiggan", 1, ()),
        ("biggan", 1, ("loss=wgan_gp", "loss.interval=2")),
        ("biggan", 2, ("loss=rpgan",)),
    ],
)
def test_two_processes_train_what_one_trains(
    in_processes: InProcesses,
    differences: Callable[[Any, Any], list[str]],
    recipe: str,
    accumulate: int,
    overrides: tuple[str, ...],
) -> None:
    one = trained(recipe, accumulate, *overrides)
    pair = in_processes(2, trained, recipe, accumulate, *overrides)
    for other in pair:
        torch.testing.assert_close(other["weights"], one["weights"], rtol=0, atol=1e-5)
        # The saved state is the same in all processes: a run can resume with any number of them.
        assert torch.equal(other["rng"], one["rng"])
        assert differences(other["stream"], one["stream"]) == []
    for name, value in one["metrics"].items():
        mean = torch.stack([other["metrics"][name] for other in pair]).mean()
        if name.startswith("gradient_norm"):
            torch.testing.assert_close(pair[0]["metrics"][name], value, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(mean, value, rtol=1e-6, atol=1e-8, msg=name)


def normalised(x: Tensor, upstream: Tensor) -> list[Tensor]:
    norm = BatchNorm2d(3).double()
    rank, n = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    rows = len(x) // n
    own = x[rank * rows : (rank + 1) * rows].clone().requires_grad_()
    y = norm(own)
    (y * upstream[rank * rows : (rank + 1) * rows]).sum().backward()
    assert own.grad is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return [y.detach(), own.grad, norm.running_mean, norm.running_var]


def test_batch_norm_sees_the_images_of_all_processes(in_processes: InProcesses) -> None:
    torch.manual_seed(0)
    x, upstream = torch.randn(2, 6, 3, 4, 4, dtype=torch.float64)
    y, gradient, mean, variance = normalised(x, upstream)
    pair = in_processes(2, normalised, x, upstream)
    torch.testing.assert_close(torch.cat([own[0] for own in pair]), y, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat([own[1] for own in pair]), gradient, rtol=0, atol=1e-12)
    for own in pair:
        torch.testing.assert_close(own[2:], [mean, variance], rtol=0, atol=1e-12)
