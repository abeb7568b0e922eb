"""On real images the offline distances order what everybody would order alike."""

import os
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from cifargan.data.folder import Folder
from cifargan.data.sources import ImageSet
from cifargan.evaluation.extractors.efficientnet import EfficientNetLite0
from cifargan.evaluation.metrics import frechet_distance, gaussian, kernel_distance
from cifargan.evaluation.scores import SUBSET_SIZE

CPU = torch.device("cpu")
N = 2000
Distance = Callable[[Tensor, Tensor], float]


def by_frechet(real: Tensor, fake: Tensor) -> float:
    return frechet_distance(gaussian(real), gaussian(fake))


def by_kernel(real: Tensor, fake: Tensor) -> float:
    return kernel_distance(real, fake, subsets=10, subset_size=min(SUBSET_SIZE, len(real), len(fake)))[0]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Features of 2,000 training images, and of what they are compared with."""
    if "CIFARGAN_TEST_IMAGES" not in os.environ:
        pytest.skip("CIFARGAN_TEST_IMAGES names no image folder")
    cache = tmp_path_factory.mktemp("cache")

    def load(split: str) -> ImageSet:
        return Folder(root=os.environ["CIFARGAN_TEST_IMAGES"], splits=[split], cache=str(cache)).load()

    train, test = load("train"), load("test")
    generator = torch.Generator().manual_seed(0)
    real = train.images[torch.randperm(len(train), generator=generator)[:N]]
    other = test.images[torch.randperm(len(test), generator=generator)[:N]]
    noise = torch.randn(other.shape, generator=generator) * 0.1 * 255
    classes = {name: train.images[train.labels == train.classes.index(name)][:1000] for name in ("airplane", "frog")}
    extractor = EfficientNetLite0(device=CPU)

    def look(images: Tensor) -> Tensor:
        return torch.cat([extractor.extract(part).features for part in torch.split(images, 100)])

    return {
        "train": look(real),
        "test": look(other),
        "blurred": look(gaussian_blur(other, [5, 5], [1.0, 1.0])),
        "noisy": look((other + noise).round().clamp(0, 255).to(torch.uint8)),
        "airplane": look(classes["airplane"]),
        "frog": look(classes["frog"]),
        "repeated": look(other[:10]).repeat(N // 10, 1),
    }


@pytest.mark.slow
@pytest.mark.parametrize("distance", [by_frechet, by_kernel])
def test_worse_images_are_farther(features: dict[str, Tensor], distance: Distance) -> None:
    real = features["train"]
    distances = [
        distance(real, features["test"]),
        distance(real, features["blurred"]),
        distance(real, features["noisy"]),
        distance(features["airplane"], features["frog"]),
        distance(real, features["repeated"]),
    ]
    assert all(1.1 * nearer < farther for nearer, farther in pairwise(distances)), distances
    if distance is by_kernel:
        assert abs(distances[0]) < 0.1 * distances[1]  # unbiased: about nothing between two samples of one thing
