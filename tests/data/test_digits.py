"""scikit-learn's digits."""

import pytest
import torch

from cifargan.data.digits import Digits
from cifargan.errors import UserError


def test_all_digits_are_in_one_split_or_the_other() -> None:
    train, test = Digits().load(), Digits(splits=["test"]).load()
    assert train.images.shape == (1498, 3, 32, 32)
    assert test.images.shape == (299, 3, 32, 32)
    assert train.classes == tuple("0123456789")
    assert not train.flip
    both = Digits(splits=["train", "test"]).load()
    torch.testing.assert_close(both.images, torch.cat([train.images, test.images]))
    assert torch.bincount(test.labels).min() > 20


def test_values_span_the_bytes_and_are_grey() -> None:
    digits = Digits(image_size=8).load()
    assert digits.fingerprint == Digits(image_size=8).load().fingerprint
    images = digits.images  # not resampled: levels 0..16 times 255 / 16
    assert sorted(set(images.flatten().tolist())) == sorted({round(level * 255 / 16) for level in range(17)})
    torch.testing.assert_close(images[:, 0], images[:, 2])


def test_unknown_splits_are_refused() -> None:
    with pytest.raises(UserError, match="did you mean train"):
        Digits(splits=["trains"])
    with pytest.raises(UserError, match="at least one"):
        Digits(splits=[])
