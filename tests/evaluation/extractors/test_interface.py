"""What extractors have in common: precision, names, and which images they take."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from cifargan.evaluation.extractors.interface import FeatureExtractor, Features

MATMUL, CONV = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]


class Spy(FeatureExtractor):
    """Notes what holds during the pass, and fails if told to."""

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


class TestPrecision:
    @pytest.fixture(autouse=True)
    def reduced(self) -> Iterator[None]:
        before = MATMUL.fp32_precision, CONV.fp32_precision
        MATMUL.fp32_precision = CONV.fp32_precision = "tf32"
        yield
        MATMUL.fp32_precision, CONV.fp32_precision = before

    @pytest.mark.parametrize("fails", [False, True])
    def test_passes_are_exact_and_leave_the_settings_as_they_were(self, fails: bool) -> None:
        spy = Spy()
        spy.fails = fails
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if fails:
                with pytest.raises(RuntimeError, match="nothing to see"):
                    spy.extract(IMAGES)
            else:
                spy.extract(IMAGES)
            assert torch.is_autocast_enabled("cpu")
        assert spy.seen == ("ieee", "ieee", False, False)
        assert (MATMUL.fp32_precision, CONV.fp32_precision) == ("tf32", "tf32")
        assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("images", "told"),
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
def test_other_images_are_refused(images: Tensor, told: str) -> None:
    spy = Spy()
    with pytest.raises(ValueError, match=f"^features are those of .*, and these are {told}$"):
        spy.extract(images)
    assert not hasattr(spy, "seen")
