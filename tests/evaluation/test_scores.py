"""Scores: which images are picked, what statistics alone allow, copies, and the hit rate of a class head."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.evaluation import scores, table
from cifargan.evaluation.feature_stats import Measured, in_batches, measure
from cifargan.evaluation.precision_recall import manifold_scores
from cifargan.evaluation.records import Protocol
from cifargan.evaluation.reference import export_statistics, import_statistics, reference_of
from cifargan.evaluation.scores import (
    CLASSIFIED_TOGETHER,
    SUSPECTS,
    authentic,
    copies,
    head_hit_rate,
    spread_evenly,
    suspects,
)
from cifargan.evaluation.table import Inputs, caveats, score
from cifargan.models.interface import Discriminator, DiscriminatorOutput
from cifargan.registry import METRICS, metric_of

CPU = torch.device("cpu")
Extractors = Callable[..., Any]
Insects = Callable[..., ImageSet]


def look_at(images: ImageSet, extractor: Any) -> Measured:
    batches = in_batches(images.images, images.labels, 16)
    return measure(batches, len(images), extractor, device=CPU, label="looking")


def test_images_are_picked_evenly_from_every_class() -> None:
    for labels in (torch.arange(60) // 20, torch.arange(60) % 3):
        picked = spread_evenly(labels, 12)
        assert torch.bincount(labels[picked]).tolist() == [4, 4, 4]
        for label in range(3):
            of_class = (labels == label).nonzero().flatten()
            assert torch.equal(picked[labels[picked] == label], of_class[::5])
    assert sorted(spread_evenly(torch.zeros(5, dtype=torch.int64), 9).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (2000, []),
        (1000, []),
        (7, ["7 images: the kernel distance is over subsets of 7 instead of 1000"]),
        (6, ["6 images for 6 features: the covariance is singular", "6 images: the kernel distance"]),
    ],
)
def test_too_few_images_give_caveats(corners: Extractors, n: int, expected: list[str]) -> None:
    lines = caveats(n, corners())
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))


def test_statistics_alone_allow_a_distance_and_nothing_else(
    corners: Extractors, insects: Insects, tmp_path: Path
) -> None:
    extractor, fake = corners(), look_at(insects(40, seed=9), corners())
    whole = reference_of(insects(60), extractor, device=CPU)
    export_statistics(tmp_path / "stats.npz", whole, extractor)
    statistics = import_statistics(tmp_path / "stats.npz", extractor)
    protocol = Protocol(n=40, space=extractor.space, subject="samples")
    classes = whole.classes
    (alone,) = score(Inputs(fake, statistics, classes=classes, device=CPU), METRICS, extractor, protocol)
    found = score(Inputs(fake, whole, classes=classes, device=CPU), METRICS, extractor, protocol)
    assert alone in found
    assert {record.metric for record in found} == {
        f"{name}_corners"
        for name in ("fd", "kd", "precision", "recall", "density", "coverage", "class_hit_rate", "authentic")
    }
    with pytest.raises(UserError, match="metric kid: needs real_features, not known of samples against insects train"):
        score(Inputs(fake, statistics, device=CPU), {"kid": METRICS["kid"]}, extractor, protocol, strict=True)
    others = Inputs(fake, whole, classes=("dog", "cat", "eel"), device=CPU)
    assert {record.class_name for record in score(others, METRICS, extractor, protocol)} == {None}


def test_manifold_metrics_look_at_a_bounded_number_of_images(
    corners: Extractors, insects: Insects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "MANIFOLD_SAMPLES", 30)
    monkeypatch.setattr(table, "MANIFOLD_SAMPLES", 30)
    extractor, real = corners(), insects(60)
    fake = look_at(insects(40, seed=9), extractor)
    protocol = Protocol(n=40, space=extractor.space, subject="samples")
    reference = reference_of(real, extractor, device=CPU)
    names = ("precision", "recall", "density", "coverage")
    found = score(Inputs(fake, reference, device=CPU), {name: METRICS[name] for name in names}, extractor, protocol)
    picked = spread_evenly(real.labels, 30)
    expected = manifold_scores(reference.features[picked], fake.features[:30], k=5)
    assert {record.key: record.value for record in found} == {
        f"{name}_corners_n30_train": value for name, value in expected._asdict().items()
    }


@pytest.mark.parametrize(
    ("suffix", "names"),
    [
        ("", ("fid", "kid", "is", "fid", "head_hit_rate")),
        ("_bf16", ("fd_bf16", "kd_bf16", "is_bf16", "fd_bf16", "head_hit_rate")),
    ],
)
def test_only_a_space_without_a_suffix_has_the_usual_names(suffix: str, names: tuple[str, ...]) -> None:
    keys = ("fid", "kid", "is", "class_fid", "head_hit_rate")
    assert tuple(METRICS[key].recorded(key, suffix) for key in keys) == names
    for name, key in zip(names[:3], keys, strict=False):
        assert metric_of(name) is metric_of(f"{name}_n50000_train") is METRICS[key]
    assert metric_of("class_hit_rate_lite0_64_n12_train/cat") is METRICS["class_hit_rate"]
    assert metric_of("isotope") is metric_of("fidelity_n5") is None


def features(images: ImageSet, extractors: Extractors) -> Tensor:
    found: Tensor = extractors().extract(images.images).features
    return found


def test_copies_come_first_beside_their_originals(
    corners: Extractors, insects: Insects, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, fake = insects(60), insects(40, seed=9)
    fake.images[[5, 30]] = real.images[[17, 42]]
    reals, fakes = (features(side, corners) for side in (real, fake))
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
    monkeypatch.setattr(scores, "MANIFOLD_SAMPLES", 20)
    found = copies(reals, fakes, CPU)
    assert len(found.indices) == 20
    rows = suspects(found, fake.images[:20], real.images, CPU)
    assert torch.equal(rows["samples"][0], real.images[17])
    assert not (rows["samples"] == real.images[42]).all(dim=(1, 2, 3)).any()


def test_suspects_are_compared_by_pixels_and_by_features(corners: Extractors, insects: Insects) -> None:
    """Features depend on the first two pixels of a row alone."""
    real, fake = insects(60), insects(40, seed=9)
    fake.images[5] = real.images[17]
    fake.images[5, :, 0, :2] = real.images[42, :, 0, :2]
    found = copies(features(real, corners), features(fake, corners), CPU)
    rows = suspects(found, fake.images, real.images, CPU)
    assert torch.equal(rows["samples"][0], fake.images[5])
    assert torch.equal(rows["nearest by features"][0], real.images[42])
    assert torch.equal(rows["nearest by pixels"][0], real.images[17])


class Brightest(Discriminator):
    """Takes the brightest channel for the class."""

    def __init__(self, *, head: bool = True) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor, y: Tensor) -> DiscriminatorOutput:
        assert x.dtype == torch.float32
        assert x.min() >= -1
        assert x.max() <= 1
        means = x.mean(dim=(2, 3))
        return DiscriminatorOutput(logits=means[:, 0], class_logits=means if self.head else None)


def channels(*brightest: int) -> Tensor:
    images = torch.zeros(len(brightest), 3, 2, 2, dtype=torch.uint8)
    images[torch.arange(len(brightest)), torch.tensor(brightest)] = 200
    return images


@pytest.mark.parametrize("copies", [1, CLASSIFIED_TOGETHER])  # within a batch and over several
def test_hits_are_counted_for_all_and_for_each_class(copies: int) -> None:
    images, labels = channels(0, 0, 1, 2, 1, 1), torch.tensor([0, 0, 0, 1, 1, 1])
    images, labels = images.repeat(copies, 1, 1, 1), labels.repeat(copies)
    classes = ("ant", "bee", "cow")
    more = torch.zeros(5, dtype=torch.int64)  # of samples whose images were not kept
    values = head_hit_rate(Brightest(), images, torch.cat([labels, more]), classes, CPU)
    assert [(value.class_name, value.value, value.n) for value in values] == [
        (None, 4 / 6, 6 * copies),
        ("ant", 2 / 3, 3 * copies),
        ("bee", 2 / 3, 3 * copies),
    ]
    with pytest.raises(ValueError, match="no class head"):
        [*head_hit_rate(Brightest(head=False), images, labels, classes, CPU)]
