"""Copies of training images: found, counted, and shown beside what they copy."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cifargan.data.sources import ImageSet
from cifargan.evaluation import scores
from cifargan.evaluation.memorisation import SUSPECTS, suspects
from cifargan.evaluation.scores import authentic, copies

CPU = torch.device("cpu")
Extractors = Callable[..., Any]
Insects = Callable[..., ImageSet]


@pytest.fixture
def sides(insects: Insects) -> tuple[ImageSet, ImageSet]:
    """Real images, and fake ones of which two are copies."""
    real, fake = insects(60), insects(40, seed=9)
    fake.images[[5, 30]] = real.images[[17, 42]]
    return real, fake


def features(images: ImageSet, extractors: Extractors) -> Tensor:
    found: Tensor = extractors().extract(images.images).features
    return found


def test_copies_come_first_beside_what_they_copy(corners: Extractors, sides: tuple[ImageSet, ImageSet]) -> None:
    real, fake = sides
    reals, fakes = (features(side, corners) for side in sides)
    found = copies(reals, fakes, CPU)
    rows = suspects(found, fake.images, real.images, CPU)
    assert [len(row) for row in rows.values()] == [SUSPECTS] * 3
    for row in rows.values():
        assert torch.equal(row[:2], real.images[[17, 42]])
    away = torch.cdist(fakes, reals).min(dim=1)
    own = torch.cdist(reals, reals).fill_diagonal_(torch.inf).min(dim=1).values
    share = float((away.values > own[away.indices]).double().mean())
    assert authentic(found) == share
    assert 0 < share <= 38 / 40


def test_pixels_are_looked_at_as_well_as_features(corners: Extractors, insects: Insects) -> None:
    """The features see the first two pixels of a row alone."""
    real, fake = insects(60), insects(40, seed=9)
    fake.images[5] = real.images[17]
    fake.images[5, :, 0, :2] = real.images[42, :, 0, :2]
    found = copies(features(real, corners), features(fake, corners), CPU)
    rows = suspects(found, fake.images, real.images, CPU)
    assert torch.equal(rows["samples"][0], fake.images[5])
    assert torch.equal(rows["nearest by features"][0], real.images[42])
    assert torch.equal(rows["nearest by pixels"][0], real.images[17])


def test_only_the_first_samples_are_looked_at(
    corners: Extractors, sides: tuple[ImageSet, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "MANIFOLD_SAMPLES", 20)
    real, fake = sides
    found = copies(features(real, corners), features(fake, corners), CPU)
    assert len(found.indices) == 20
    rows = suspects(found, fake.images[:20], real.images, CPU)
    assert torch.equal(rows["samples"][0], real.images[17])
    assert not (rows["samples"] == real.images[42]).all(dim=(1, 2, 3)).any()
