"""The whole of an evaluation against torch-fidelity's and torchmetrics' own, with the same weights and images."""

from pathlib import Path

import pytest
import torch
import torch_fidelity
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics.image.fid import FrechetInceptionDistance

from cifargan.data.digits import Digits
from cifargan.data.sources import ImageSet
from cifargan.evaluation import scores
from cifargan.evaluation.extractors.inception import Inception
from cifargan.evaluation.feature_stats import in_batches, measure
from cifargan.evaluation.records import Protocol
from cifargan.evaluation.reference import reference_of
from cifargan.evaluation.table import QUICK, Inputs, score
from cifargan.registry import METRICS

CPU = torch.device("cpu")
N = 24
SUBSET = 15


class Images(Dataset[Tensor]):
    """Bytes, as torch-fidelity takes them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i]


@pytest.fixture(scope="module")
def sides() -> tuple[ImageSet, ImageSet]:
    """Real digits, and what a poor generator would make of others."""
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


@pytest.fixture(scope="module")
def ours(
    sides: tuple[ImageSet, ImageSet], inception_weights_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[float, float | None]]:
    real, fake = sides
    extractor = Inception(weights=str(inception_weights_file), device=CPU)
    protocol = Protocol(n=N, space=extractor.space, subject="images")
    seen = measure(in_batches(fake.images, fake.labels, 7), N, extractor, device=CPU, label="looking")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "SUBSET_SIZE", SUBSET)
        reference = reference_of(real, extractor, device=CPU, folder=tmp_path_factory.mktemp("cache"))
        chosen = {name: METRICS[name] for name in QUICK}
        records = [
            record
            for real in (None, reference)
            for record in score(Inputs(seen, real, device=CPU), chosen, extractor, protocol)
        ]
    return {record.metric.partition("_")[0]: (record.value, record.spread) for record in records}


@pytest.mark.slow
def test_scores_are_torch_fidelitys(
    sides: tuple[ImageSet, ImageSet],
    ours: dict[str, tuple[float, float | None]],
    inception_weights_file: Path,
) -> None:
    real, fake = sides
    common = {
        "feature_extractor_weights_path": str(inception_weights_file),
        "cuda": False,
        "cache": False,
        "verbose": False,
        "batch_size": 8,
        "save_cpu_ram": True,
    }
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(real.images), input2=Images(fake.images), fid=True, kid=True, kid_subset_size=SUBSET, **common
    )
    score = torch_fidelity.calculate_metrics(input1=Images(fake.images), isc=True, **common)
    assert ours["fd"][0] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5, abs=1e-6)
    assert ours["kd"][0] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5, abs=1e-6)
    assert ours["kd"][1] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-5, abs=1e-6)
    assert ours["is"][0] == pytest.approx(score["inception_score_mean"], abs=1e-4)
    assert ours["is"][1] == pytest.approx(score["inception_score_std"], abs=1e-4)
    # None of them is trivial.
    assert ours["fd"][0] > 1
    assert ours["kd"][0] > 1e-3
    assert ours["is"][0] > 1.005


@pytest.mark.slow
def test_torchmetrics_is_a_second_witness(
    sides: tuple[ImageSet, ImageSet], ours: dict[str, tuple[float, float | None]], inception_weights_file: Path
) -> None:
    witness = FrechetInceptionDistance(feature_extractor_weights_path=str(inception_weights_file), antialias=False)
    for images, real in zip(sides, (True, False), strict=True):
        witness.update(images.images, real=real)
    assert ours["fd"][0] == pytest.approx(float(witness.compute()), rel=1e-4)  # its sums are in float32
