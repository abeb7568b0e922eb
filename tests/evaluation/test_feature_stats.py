"""One pass over images: its results, and errors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.evaluation.feature_stats import StoppedError, in_batches, measure
from cifargan.evaluation.metrics import InceptionScoreSums, gaussian

CPU = torch.device("cpu")
Extractors = Callable[..., Any]
Insects = Callable[..., ImageSet]


@pytest.mark.parametrize("batch_size", [1, 9, 45, 100])
def test_a_pass_gathers_everything_whatever_the_batches(corners: Extractors, insects: Insects, batch_size: int) -> None:
    images = insects(45)
    batches = in_batches(images.images, images.labels, batch_size)
    seen = measure(batches, 45, corners(has_logits=True), device=CPU, label="looking", keep_images=12)
    features = corners().extract(images.images).features
    assert torch.equal(seen.features, features)
    assert torch.equal(seen.labels, images.labels)
    assert torch.equal(seen.images, images.images[:12])
    torch.testing.assert_close(seen.gaussian.mean, gaussian(features).mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(seen.gaussian.covariance, gaussian(features).covariance, rtol=0, atol=1e-12)
    sums = InceptionScoreSums(len(features), device=CPU)
    sums.update(features)
    assert seen.inception_score == pytest.approx(sums.result(), rel=1e-9)
    few = in_batches(images.images[:9], images.labels[:9], batch_size)  # fewer than the splits of the Inception Score
    assert measure(few, 9, corners(has_logits=True), device=CPU, label="looking").inception_score is None


def test_a_pass_that_cannot_be_finished_is_one_line(corners: Extractors, insects: Insects) -> None:
    images, extractor = insects(20), corners()

    def look(total: int, **settings: Any) -> None:
        batches = in_batches(images.images[:total], images.labels[:total], 8)
        measure(batches, settings.pop("expected", total), extractor, device=CPU, label="looking", **settings)

    with pytest.raises(UserError, match="looking: 20 images came where 24 were expected"):
        look(20, expected=24)
    with pytest.raises(UserError, match="looking: a covariance needs at least 2 rows of features, got 1"):
        look(1)
    with pytest.raises(StoppedError, match="looking: stopped after 8 of 20 images"):
        look(20, stop=lambda: True)
    forward = extractor._forward
    extractor._forward = lambda x: forward(x)._replace(features=torch.full((len(x), 6), torch.nan))
    with pytest.raises(UserError, match=r"looking: .*not finite"):
        look(20)
