"""What extractors have in common: precision, and the images that they accept."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cifargan.evaluation.extractors.interface import FeatureExtractor, Features

MATMUL, CONV = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]


class Spy(FeatureExtractor):
    """Records the settings during a pass, and fails on request."""

    name = "spy"
    suffix = "_spy"
    fails = False

    def _forward(self, images: Tensor) -> Features:
        self.seen = (
            MATMUL.fp32_precision,
            CONV.fp32_precision,
            torch.is_autocast_enabled("cpu"),
            torch.is_grad_enabled(),
        )
        if self.fails:
            raise RuntimeError("nothing to see")
        return Features(images.flatten(1).float(), None)


IMAGES = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)


@pytest.fixture
def tf32() -> Iterator[None]:
    """Reduced precision, as training may set it."""
    before = MATMUL.fp32_precision, CONV.fp32_precision
    MATMUL.fp32_precision = CONV.fp32_precision = "tf32"
    yield
    MATMUL.fp32_precision, CONV.fp32_precision = before


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("fails", [False, True])
def test_passes_are_exact_and_restore_the_settings(fails: bool) -> None:
    spy = Spy()
    spy.fails = fails
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError, match="nothing to see") if fails else contextlib.nullcontext():
            spy.extract(IMAGES)
        assert torch.is_autocast_enabled("cpu")
    assert spy.seen == ("ieee", "ieee", False, False)
    assert (MATMUL.fp32_precision, CONV.fp32_precision) == ("tf32", "tf32")
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (IMAGES.float(), "torch.float32"),
        (IMAGES.bool(), "torch.bool"),
        (IMAGES[0], r"\(3, 4, 4\)"),
        (IMAGES[:, :1], r"\(2, 1, 4, 4\)"),
        (IMAGES.movedim(1, -1), r"\(2, 4, 4, 3\)"),
        (IMAGES[:0], r"\(0, 3, 4, 4\)"),
        (IMAGES[..., :0], r"\(2, 3, 4, 0\)"),
    ],
)
def test_other_images_are_refused(images: Tensor, found: str) -> None:
    spy = Spy()
    with pytest.raises(ValueError, match=f"^features are those of .*, and these are {found}$"):
        spy.extract(images)
    assert not hasattr(spy, "seen")
