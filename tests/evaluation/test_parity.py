"""A whole evaluation against torch-fidelity and torchmetrics, with the same weights and images."""

from pathlib import Path

import pytest
import torch
import torch_fidelity
from torch import Tensor, nn
from torch.utils.data import Subset
from torchmetrics.image.fid import FrechetInceptionDistance

from cifargan.data.digits import Digits
from cifargan.data.sources import ImageSet
from cifargan.evaluation import scores
from cifargan.evaluation.extractors.inception import Inception
from cifargan.evaluation.extractors.interface import FeatureExtractor, Features
from cifargan.evaluation.feature_stats import in_batches, measure
from cifargan.evaluation.records import Protocol, Record
from cifargan.evaluation.reference import Reference, card_of
from cifargan.evaluation.table import QUICK, Inputs, score
from cifargan.registry import METRICS

CPU = torch.device("cpu")
N = 24
SUBSET = 15


class Coarse(FeatureExtractor):
    """Every sixteenth pixel: few features, so that the matrix root of torchmetrics takes no time."""

    name, suffix, dim, resize, weights_hash = "coarse", "_coarse", 12, "none", "none"

    def _forward(self, images: Tensor) -> Features:
        return Features(images[:, :, ::16, ::16].flatten(1).float(), None)


class CoarseModule(nn.Module):
    """The same for torchmetrics."""

    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, ::16, ::16].flatten(1).float()


@pytest.fixture(scope="module")
def sides() -> tuple[ImageSet, ImageSet]:
    """Real digits, and other digits with noise as fake ones."""
    digits = Digits().load()
    noise = torch.randint(-40, 41, (N, 3, 32, 32), generator=torch.Generator().manual_seed(0))

    def part(images: Tensor) -> ImageSet:
        return ImageSet(
            images=images,
            labels=digits.labels[:N],
            classes=digits.classes,
            name="digits",
            splits=("train",),
            flip=False,
        )

    fake = (digits.images[N : 2 * N].int() + noise).clamp(0, 255).to(torch.uint8)
    return part(digits.images[:N]), part(fake)


def scored(sides: tuple[ImageSet, ImageSet], extractor: FeatureExtractor) -> dict[str, Record]:
    """The scores of the fake side against the real one, and the Inception Score of the real one."""
    real, fake = (
        measure(in_batches(side.images, side.labels, 7), N, extractor, device=CPU, label="looking") for side in sides
    )
    reference = Reference(
        card=card_of(sides[0]), gaussian=real.gaussian, features=real.features, labels=real.labels, images=None
    )
    protocol = Protocol(n=N, space=extractor.space, subject="images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "SUBSET_SIZE", SUBSET)
        both = [
            score(inputs, {name: METRICS[name] for name in QUICK}, extractor, protocol)
            for inputs in (Inputs(fake, reference, device=CPU), Inputs(real, device=CPU))
        ]
    return {record.kind: record for records in both for record in records}


@pytest.mark.slow
def test_scores_equal_those_of_torch_fidelity(sides: tuple[ImageSet, ImageSet], inception_weights_file: Path) -> None:
    ours = scored(sides, Inception(weights=str(inception_weights_file), device=CPU))
    real, fake = sides
    theirs = torch_fidelity.calculate_metrics(
        input1=Subset(real.images, range(N)),  # type: ignore[arg-type]
        input2=Subset(fake.images, range(N)),  # type: ignore[arg-type]
        isc=True,
        fid=True,
        kid=True,
        kid_subset_size=SUBSET,
        feature_extractor_weights_path=str(inception_weights_file),
        cuda=False,
        cache=False,
        verbose=False,
        batch_size=8,
        save_cpu_ram=True,
    )
    assert ours["fid"].value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5, abs=1e-6)
    assert ours["kid"].value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5, abs=1e-6)
    assert ours["kid"].spread == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-5, abs=1e-6)
    # Its Inception Score is that of the first input.
    assert ours["is"].value == pytest.approx(theirs["inception_score_mean"], abs=1e-4)
    assert ours["is"].spread == pytest.approx(theirs["inception_score_std"], abs=1e-4)
    # None of them is trivial.
    assert abs(ours["kid"].value) > 1e-3
    assert ours["fid"].value > 1
    assert ours["is"].value > 1.005


def test_the_frechet_distance_equals_that_of_torchmetrics(sides: tuple[ImageSet, ImageSet]) -> None:
    witness = FrechetInceptionDistance(feature=CoarseModule(), normalize=False)
    for images, real in zip(sides, (True, False), strict=True):
        witness.update(images.images, real=real)
    ours = scored(sides, Coarse())["fid"].value
    assert ours > 1
    assert ours == pytest.approx(float(witness.compute()), rel=1e-4)  # its sums are in float32
