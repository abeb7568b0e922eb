"""A device that is not the host: what an iteration and a sampler may not do, found without a GPU.

torch's device `meta` has tensors without values. Reading one fails there, where the host would wait for a GPU. A tensor
that lies on the host by mistake meets one on `meta` in an operator, as it would meet one on a GPU.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cifargan.bench.gate import small
from cifargan.bench.presets import compose, random_images
from cifargan.build import build_gan
from cifargan.config import parse
from cifargan.sampling import BatchNormMode, Sampler
from cifargan.schema import conf_dir
from cifargan.training.speed import SpeedOptions
from cifargan.training.step import GANStep

META = torch.device("meta")
CHOSEN = SpeedOptions(channels_last=True, batched_spectral_norm=True, fold_up=True, fold_down=True)
PRESETS = sorted(path.stem for path in Path(conf_dir(), "experiment").glob("*.yaml"))


@pytest.fixture(autouse=True)
def a_device_without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` knows neither autocast nor random generators of its own."""
    make = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": make("cpu" if device == META else device))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


class Astray(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names the operators that took or made a tensor on the host; single numbers travel with a kernel's arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor) and value.device != META and value.dim() > 0:
                self.found.add(str(func))
        return result


def gan_on_meta(preset: str) -> GANStep:
    config = small(compose(preset))
    return build_gan(
        parse(config), images=random_images(64, image_size=config.data.image_size), device=META, speed=CHOSEN
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_the_device_part_of_an_iteration_reads_nothing_and_has_nothing_on_the_host(preset: str) -> None:
    gan = gan_on_meta(preset)
    with Astray() as astray:
        for _ in range(2):  # in the first, optimisers make their moments
            gan.prepare()
            astray.found.clear()
            metrics = gan.iteration(gan.objective.due(0))
            assert astray.found == set()
    assert {value.device for value in metrics.values()} == {META}


def test_what_strays_is_found() -> None:
    with Astray() as astray:
        torch.zeros(2, device=META) + torch.zeros(())
        assert astray.found == set()
        torch.zeros(2, device=META).copy_(torch.zeros(2))
    assert "aten.copy_.default" in astray.found


@pytest.mark.parametrize("mode", ["standing", "running", "batch"])
@pytest.mark.parametrize("preset", ["biggan", "dcgan"])
def test_a_sampler_reads_nothing_before_its_last_batch(preset: str, mode: BatchNormMode) -> None:
    generator = gan_on_meta(preset).generator
    classes = [str(label) for label in range(10)]
    sampler = Sampler(generator, classes, device=META, batch_norm=mode, batch_size=100)
    batches = sampler.stream(200, truncation=0.5)
    for _ in range(2):
        images, y = next(batches)
        assert images.device == y.device == META
    with pytest.raises(RuntimeError, match="meta"):
        next(batches)  # asks whether all were finite
