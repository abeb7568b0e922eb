"""Weights, extractors, a generator and real images for tests of evaluation."""

import importlib.util
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3

from cifargan.data.sources import ImageSet
from cifargan.evaluation.extractors.interface import FeatureExtractor, Features
from cifargan.models.interface import Generator


@pytest.fixture
def global_rng() -> Callable[[], bytes]:
    """A function that reads the state of every global random generator, seeded with an unusual number."""
    torch.manual_seed(20_011)

    def look() -> bytes:
        return pickle.dumps((torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()))  # noqa: NPY002

    return look


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that makes a package look as if it were not installed."""
    find_spec = importlib.util.find_spec

    def hide_package(package: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))

    return hide_package


@pytest.fixture
def own_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache for this test, in an environment that names no weights."""
    monkeypatch.delenv("CIFARGAN_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.delenv("CIFARGAN_DINOV2_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture(scope="session")
def inception_weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random Inception weights, scaled so that activations neither vanish nor explode, and images differ in them.

    The batch norms scale by what three smooth images give, and do not centre; the weights lean a little to the positive
    side. With centred and symmetric ones rounding would reach 1e-4 of the features; with these it stays at 1e-6, as
    with trained ones. Features have a mean of about 1, logits a standard deviation of 1 to 2.
    """
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(feature_extractor_inceptionv3.FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
        network = feature_extractor_inceptionv3.FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased"])
        noise = torch.rand(3, 3, 32, 32) - 0.5
        colours = F.interpolate(torch.rand(3, 3, 4, 4), size=(32, 32), mode="bilinear")
    images = (colours * 255 + noise * 60).clamp(0, 255).to(torch.uint8)

    def calibrate(norm: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        assert norm.running_var is not None
        norm.running_var.copy_(inputs[0].square().mean(dim=(0, 2, 3)))

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight += 0.03 * module.weight.std()
        hooks = [
            module.register_forward_pre_hook(calibrate)
            for module in network.modules()
            if isinstance(module, nn.BatchNorm2d)
        ]
        _, logits = network(images)
        for hook in hooks:
            hook.remove()
        network.fc.weight /= logits.std()
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


class Corners(FeatureExtractor):
    """Six bytes of an image, which also are its class logits if it has any."""

    name = "corners"
    suffix = "_corners"
    dim = 6
    resize = "none"
    weights_hash = "c0ffee"

    def __init__(self, *, has_logits: bool = False) -> None:
        self.has_logits = has_logits
        self.seen: list[Tensor] = []

    def _forward(self, images: Tensor) -> Features:
        self.seen.append(images)
        features = images[:, :, 0, :2].flatten(1).float() / 255  # (N, 3, H, W) -> (N, 6)
        return Features(features, features if self.has_logits else None)


@pytest.fixture
def corners() -> Callable[..., FeatureExtractor]:
    """A function that makes an extractor whose features are easy to compute; `seen` lists its batches."""
    return Corners


class Tiny(Generator):
    """A conditional generator with batch norm."""

    def __init__(self) -> None:
        super().__init__(latent_dim=4, num_classes=3, image_size=4)
        self.embed = nn.Embedding(3, 4)
        self.linear = nn.Linear(4, 48)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.linear(z + self.embed(y)).view(-1, 3, 4, 4)))


@pytest.fixture
def tiny() -> Generator:
    """A conditional generator of three classes, 4x4, in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Tiny().train()


@pytest.fixture
def insects() -> Callable[..., ImageSet]:
    """A function that makes n real images of three classes, 4x4; image i is known by its first pixel, which is i."""

    def make(n: int, *, labels: Tensor | None = None, split: str = "train", seed: int = 5) -> ImageSet:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8, generator=generator)
        images[:, 0, 0, 0] = torch.arange(n)
        return ImageSet(
            images=images,
            labels=torch.arange(n) % 3 if labels is None else labels,
            classes=("ant", "bee", "cow"),
            name="insects",
            splits=(split,),
            flip=False,
        )

    return make


@pytest.fixture
def own_cache(tmp_path: Path) -> Path:
    """Where features of real images are cached in this test."""
    return tmp_path / "cache" / "features"
