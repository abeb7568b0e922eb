"""References: cached under all that decides them, damaged caches, statistics from elsewhere."""

import json
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
from cifargan.errors import UserError
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
        pytest.param(lambda images, extractor: (changed_pixel(images), extractor), id="one bit of one pixel"),
        pytest.param(lambda images, extractor: (replace(images, splits=("test",)), extractor), id="split"),
        pytest.param(lambda images, extractor: (images, having(extractor, weights_hash="bad")), id="weights"),
        pytest.param(lambda images, extractor: (images, having(extractor, resize="other")), id="resize"),
        pytest.param(lambda images, extractor: (images, having(extractor, dtype="bfloat16")), id="dtype"),
        pytest.param(lambda images, extractor: (images, having(extractor, name="other")), id="extractor"),
    ],
)
def test_whatever_decides_the_features_has_a_cache_of_its_own(
    corners: Extractors, insects: Insects, own_cache: Path, change: Callable[[ImageSet, Any], tuple[ImageSet, Any]]
) -> None:
    read(insects(50), corners())
    images, extractor = change(insects(50), corners())
    read(images, extractor)
    assert extractor.seen != []
    assert len(list(own_cache.iterdir())) == 2


def having(extractor: Any, **attributes: str) -> Any:
    for name, value in attributes.items():
        setattr(extractor, name, value)
    return extractor


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_feature(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-4] + bytes([content[-4] ^ 1]) + content[-3:])


def another_key(path: Path) -> None:
    tensors, about = tensor_file.read(path)
    path.write_bytes(tensor_file.to_bytes(tensors, {"key": about["key"] | {"split": "test"}}))


@pytest.mark.parametrize("damage", [cut, flip_a_feature, another_key, lambda path: path.write_bytes(b"")])
def test_a_damaged_cache_is_told_and_made_anew(
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


def test_a_cache_that_cannot_be_written_costs_a_warning(
    corners: Extractors, insects: Insects, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("")
    reference = reference_of(insects(50), corners(), device=CPU, folder=tmp_path / "taken")
    assert len(reference.features) == 50
    assert "features are not cached (could not write" in caplog.text


# Statistics


def test_statistics_go_out_and_come_back(corners: Extractors, insects: Insects, tmp_path: Path) -> None:
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


def test_statistics_of_other_tools_need_no_more_than_mu_and_sigma(corners: Extractors, tmp_path: Path) -> None:
    path = tmp_path / "fid_stats.npz"
    np.savez(path, mu=np.arange(6, dtype=np.float32), sigma=np.eye(6))
    found = import_statistics(path, corners())
    assert found.gaussian.mean.tolist() == [0, 1, 2, 3, 4, 5]
    assert (found.card.name, found.card.split, found.card.n) == ("fid_stats", "statistics", None)
    assert len(found.card.fingerprint) == 64


SKEW = np.eye(6) + np.triu(np.ones((6, 6)), 1)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"features": np.zeros(3)}, "has no arrays `mu` and `sigma`"),
    "other": ({"mu": np.zeros(2048), "sigma": np.eye(2048)[:, :5]}, r"do not go with corners, which has 6 features"),
    "nan": ({"mu": np.full(6, np.nan), "sigma": np.eye(6)}, "not finite"),
    "skew": ({"mu": np.zeros(6), "sigma": SKEW}, "not symmetric"),
    "weights": (
        {"mu": np.zeros(6), "sigma": np.eye(6), "about": np.array(json.dumps({"weights_hash": "bad"}))},
        "was made with weights_hash bad, not c0ffee",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_statistics_that_do_not_fit_are_one_line(corners: Extractors, tmp_path: Path, case: str) -> None:
    arrays, message = BAD[case]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=message) as error:
        import_statistics(tmp_path / "bad.npz", corners())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"\x93NUMPY"])
def test_a_damaged_file_of_statistics_is_one_line(corners: Extractors, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged or no \.npz file"):
        import_statistics(tmp_path / "bad.npz", corners())


def test_a_pickle_in_a_file_of_statistics_is_not_run(corners: Extractors, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", mu=np.array([{"a": 1}], dtype=object), sigma=np.eye(6))
    with pytest.raises(UserError, match=r"is damaged or no \.npz file"):
        import_statistics(tmp_path / "bad.npz", corners())
