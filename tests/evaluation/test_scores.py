"""Comparisons: which images are picked, and what statistics alone allow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.evaluation import scores, table
from cifargan.evaluation.feature_stats import Measured, in_batches, measure
from cifargan.evaluation.precision_recall import manifold_scores
from cifargan.evaluation.records import Protocol
from cifargan.evaluation.reference import export_statistics, import_statistics, reference_of
from cifargan.evaluation.scores import spread_evenly
from cifargan.evaluation.table import Inputs, caveats, score
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
def test_too_few_images_are_told(corners: Extractors, n: int, expected: list[str]) -> None:
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


def test_classes_are_compared_with_the_same_classes_alone(corners: Extractors, insects: Insects) -> None:
    extractor, fake = corners(), look_at(insects(40, seed=9), corners())
    protocol = Protocol(n=40, space=extractor.space, subject="samples")
    inputs = Inputs(fake, reference_of(insects(60), extractor, device=CPU), classes=("dog", "cat", "eel"), device=CPU)
    assert {record.class_name for record in score(inputs, METRICS, extractor, protocol)} == {None}


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
def test_only_a_space_without_a_suffix_has_the_famous_names(suffix: str, names: tuple[str, ...]) -> None:
    keys = ("fid", "kid", "is", "class_fid", "head_hit_rate")
    assert tuple(METRICS[key].recorded(key, suffix) for key in keys) == names
    for name, key in zip(names[:3], keys, strict=False):
        assert metric_of(name) is metric_of(f"{name}_n50000_train") is METRICS[key]


def test_a_metric_is_found_by_the_name_of_its_scores() -> None:
    assert metric_of("class_hit_rate_lite0_64_n12_train/cat") is METRICS["class_hit_rate"]
    assert metric_of("isotope") is metric_of("fidelity_n5") is None
