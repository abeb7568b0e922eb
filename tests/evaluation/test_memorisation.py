"""Copies of training images: found, counted, and shown beside what they copy."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.evaluation.feature_stats import Measured, in_batches, measure
from cifargan.evaluation.memorisation import SUSPECTS, Memorisation, memorisation
from cifargan.evaluation.records import Protocol
from cifargan.evaluation.reference import export_statistics, import_statistics, reference_of

CPU = torch.device("cpu")
Extractors = Callable[..., Any]
Insects = Callable[..., ImageSet]


def look_at(images: ImageSet, extractor: Any, keep: int) -> Measured:
    batches = in_batches(images.images, images.labels, 16)
    return measure(batches, len(images), extractor, device=CPU, label="looking", keep_images=keep)


def judged(fake: ImageSet, real: ImageSet, extractor: Any, keep: int) -> Memorisation:
    reference = reference_of(real, extractor, device=CPU)
    protocol = Protocol(n=len(fake), space=extractor.space, subject="samples")
    return memorisation(look_at(fake, extractor, keep), reference, extractor, protocol, device=CPU)


def test_copies_come_first_beside_what_they_copy(corners: Extractors, insects: Insects) -> None:
    real, fake = insects(60), insects(40, seed=9)
    fake.images[[5, 30]] = real.images[[17, 42]]
    found = judged(fake, real, corners(), keep=40)
    assert [len(row) for row in found.rows.values()] == [SUSPECTS] * 3
    for row in found.rows.values():
        assert torch.equal(row[:2], real.images[[17, 42]])
    assert found.record.key == "authentic_corners_n40_train"
    features, reals = corners().extract(fake.images).features, corners().extract(real.images).features
    away = torch.cdist(features, reals).min(dim=1)
    own = torch.cdist(reals, reals).fill_diagonal_(torch.inf).min(dim=1).values
    assert found.record.value == float((away.values > own[away.indices]).double().mean())
    assert 0 < found.record.value <= 38 / 40


def test_pixels_are_looked_at_as_well_as_features(corners: Extractors, insects: Insects) -> None:
    """The features see the first two pixels of a row alone."""
    real, fake = insects(60), insects(40, seed=9)
    fake.images[5] = real.images[17]
    fake.images[5, :, 0, :2] = real.images[42, :, 0, :2]
    rows = judged(fake, real, corners(), keep=40).rows
    assert torch.equal(rows["samples"][0], fake.images[5])
    assert torch.equal(rows["nearest by features"][0], real.images[42])
    assert torch.equal(rows["nearest by pixels"][0], real.images[17])


def test_only_samples_whose_images_were_kept_are_looked_at(corners: Extractors, insects: Insects) -> None:
    real, fake = insects(60), insects(40, seed=9)
    fake.images[[5, 30]] = real.images[[17, 42]]
    found = judged(fake, real, corners(), keep=20)
    assert found.record.n == 20
    assert torch.equal(found.rows["samples"][0], real.images[17])
    assert not (found.rows["samples"] == real.images[42]).all(dim=(1, 2, 3)).any()


def test_statistics_are_not_enough(corners: Extractors, insects: Insects, tmp_path: Any) -> None:
    extractor = corners()
    export_statistics(tmp_path / "stats.npz", reference_of(insects(60), extractor, device=CPU), extractor)
    reference = import_statistics(tmp_path / "stats.npz", extractor)
    protocol = Protocol(n=40, space=extractor.space, subject="samples")
    with pytest.raises(UserError, match="statistics are not enough"):
        memorisation(look_at(insects(40), extractor, 40), reference, extractor, protocol, device=CPU)
