"""References: what the cache depends on, damaged caches, statistics of other tools."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cifargan import tensor_file
from cifargan.data.sources import ImageSet
from cifargan.evaluation.metrics import gaussian
from cifargan.evaluation.reference import Reference, export_statistics, import_statistics, reference_of

CPU = torch.device("cpu")
Extractors = Callable[..., Any]
Insects = Callable[..., ImageSet]


def read(images: ImageSet, extractor: Any) -> Reference:
    return reference_of(images, extractor, device=CPU, batch_size=16)


def test_features_are_computed_once(corners: Extractors, insects: Insects, own_cache: Path) -> None:
    images = insects(50)
    first_extractor, second_extractor = corners(), corners()
    first, second = read(images, first_extractor), read(images, second_extractor)
    assert [len(batch) for batch in first_extractor.seen] == [16, 16, 16, 2]
    assert second_extractor.seen == []
    assert len(list(own_cache.iterdir())) == 1
    expected = corners().extract(images.images).features
    for reference in (first, second):
        assert torch.equal(reference.features, expected)
        torch.testing.assert_close(reference.gaussian.covariance, gaussian(expected).covariance, rtol=0, atol=1e-12)
        assert reference.gaussian.n == 50
        assert reference.card == first.card
        assert reference.images is images.images
    assert torch.equal(first.gaussian.mean, second.gaussian.mean)


def changed_pixel(images: ImageSet) -> ImageSet:
    pixels = images.images.clone()
    pixels[7, 1, 2, 3] ^= 1
    return replace(images, images=pixels, fingerprint="")


@pytest.mark.parametrize(
    "change",
    [
        changed_pixel,
        lambda images: replace(images, splits=("test",)),
        {"weights_hash": "bad"},
        {"resize": "other"},
        {"dtype": "bfloat16"},
        {"name": "other"},
    ],
)
def test_each_thing_that_decides_the_features_is_in_the_key_of_the_cache(
    corners: Extractors, insects: Insects, own_cache: Path, change: Any
) -> None:
    read(insects(50), corners())
    images, extractor = insects(50), corners()
    if isinstance(change, dict):
        extractor.__dict__.update(change)
    else:
        images = change(images)
    read(images, extractor)
    assert extractor.seen != []
    assert len(list(own_cache.iterdir())) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_feature(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:])


def another_key(path: Path) -> None:
    tensors, about = tensor_file.read(path)
    path.write_bytes(tensor_file.to_bytes(tensors, {"key": about["key"] | {"split": "test"}}))


@pytest.mark.parametrize("damage", [cut, flip_a_feature, another_key, lambda path: path.write_bytes(b"")])
def test_a_damaged_cache_is_reported_and_recomputed(
    corners: Extractors,
    insects: Insects,
    own_cache: Path,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = read(insects(50), corners())
    (path,) = own_cache.iterdir()
    damage(path)
    extractor = corners()
    found = read(insects(50), extractor)
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert message.startswith(f"the cached features in {path} are damaged (")
    assert "\n" not in message
    assert extractor.seen != []
    assert torch.equal(found.features, expected.features)
    again = corners()
    read(insects(50), again)
    assert again.seen == []


def test_a_cache_that_cannot_be_written_gives_a_warning(
    corners: Extractors, insects: Insects, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("")
    reference = reference_of(insects(50), corners(), device=CPU, folder=tmp_path / "taken")
    assert len(reference.features) == 50
    assert "features are not cached (could not write" in caplog.text


def test_exported_statistics_are_imported_unchanged(corners: Extractors, insects: Insects, tmp_path: Path) -> None:
    path, reference = tmp_path / "stats.npz", read(insects(50), corners())
    export_statistics(path, reference, corners())
    with np.load(path) as file:
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
        assert np.array_equal(file["sigma"], reference.gaussian.covariance.numpy())
    found = import_statistics(path, corners())
    assert torch.equal(found.gaussian.mean, reference.gaussian.mean)
    assert torch.equal(found.gaussian.covariance, reference.gaussian.covariance)
    assert found.card == reference.card
    assert not found.has_features


def test_statistics_of_other_tools_need_only_mu_and_sigma(corners: Extractors, tmp_path: Path) -> None:
    path = tmp_path / "fid_stats.npz"
    np.savez(path, mu=np.arange(6, dtype=np.float32), sigma=np.eye(6))
    found = import_statistics(path, corners())
    assert found.gaussian.mean.tolist() == [0, 1, 2, 3, 4, 5]
    assert (found.card.name, found.card.split, found.card.n) == ("fid_stats", "statistics", None)
    assert len(found.card.fingerprint) == 64
