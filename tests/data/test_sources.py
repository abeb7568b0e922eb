"""What all sources of images share: splits, classes, filters, resizing."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from skimage import exposure
from torch import Tensor

from cifargan.data.sources import ImageSet, ImageSource, choose, contrast, resize
from cifargan.errors import UserError


class Rows(ImageSource):
    """Six 4x4 images in two parts, each of one colour: 0, 10, .. 50; labels 0 1 2, 0 1 2."""

    def __init__(self, *, classes: list[str] | None = None, drop_low_contrast: float = 0.0) -> None:
        super().__init__(
            splits=["a", "b"], classes=classes or [], image_size=4, flip=True, drop_low_contrast=drop_low_contrast
        )

    def load(self) -> ImageSet:
        images = (torch.arange(6, dtype=torch.uint8) * 10)[:, None, None, None].repeat(1, 3, 4, 4)
        images[3, :, :2] = 255  # the one image with contrast
        labels = torch.tensor([0, 1, 2])
        return self._assemble(
            [(images[:3], labels), (images[3:], labels)], name="rows", splits=self.splits, classes=["x", "y", "z"]
        )


def colours(images: Tensor) -> list[int]:
    return images[:, 0, -1, 0].tolist()


def test_splits_are_joined_and_classes_numbered_in_the_order_given() -> None:
    rows = Rows().load()
    assert colours(rows.images) == [0, 10, 20, 30, 40, 50]
    assert rows.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (rows.classes, rows.splits) == (("x", "y", "z"), ("a", "b"))
    assert (rows.num_classes, rows.image_size, len(rows)) == (3, 4, 6)
    some = Rows(classes=["z", "x"]).load()
    assert some.classes == ("z", "x")
    assert colours(some.images) == [0, 20, 30, 50]
    assert some.labels.tolist() == [1, 0, 1, 0]


def test_low_contrast_images_are_dropped_unless_that_empties_a_class() -> None:
    assert colours(Rows(classes=["x"], drop_low_contrast=0.1).load().images) == [30]
    with pytest.raises(UserError, match=r"class 'y' of rows has no image above data\.drop_low_contrast=0\.1"):
        Rows(drop_low_contrast=0.1).load()
    for value in (-0.1, 1.0):
        with pytest.raises(UserError, match=r"data\.drop_low_contrast"):
            Rows(drop_low_contrast=value)


def test_unknown_names_come_with_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"data\.classes: there is no class 'hors'; did you mean horse"):
        choose(["ship", "hors"], ["horse", "ship"], setting="data.classes", kind="class")
    with pytest.raises(UserError, match="twice"):
        choose(["ship", "ship"], ["horse", "ship"], setting="data.classes", kind="class")


def make(images: Tensor, labels: Tensor, classes: tuple[str, ...] = ("x", "y")) -> ImageSet:
    return ImageSet(images=images, labels=labels, classes=classes, name="n", splits=("a",), flip=True)


def test_the_fingerprint_covers_images_labels_and_classes() -> None:
    images, labels = torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    changed = images.clone()
    changed[3, 2, 1, 1] = 1
    others = [
        make(changed, labels),
        make(images, labels.flip(0)),
        make(images, labels, ("x", "z")),
        make(images.view(1, 3, 4, 4), labels[:1]),
    ]
    one = make(images, labels).fingerprint
    assert len(one) == 64
    assert one == make(images.clone(), labels.clone()).fingerprint
    assert len({one, *(other.fingerprint for other in others)}) == 5


def test_other_shapes_and_types_are_refused() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    for images in (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="square uint8"):
            make(images, labels)
    with pytest.raises(ValueError, match="int64"):
        make(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), labels)


def test_resize_keeps_a_flat_image_flat_and_an_equal_size_untouched() -> None:
    images = torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)
    torch.testing.assert_close(resize(images, 20), torch.full((2, 3, 20, 20), 77, dtype=torch.uint8))
    assert resize(images, 8) is images


reference: Callable[..., bool] = exposure.is_low_contrast


def test_contrast_agrees_with_scikit_image_image_by_image() -> None:
    rng = np.random.default_rng(0)
    span = rng.uniform(0.9, 1.2, (1200, 1, 1, 1)) * 2 * 0.15 * 255  # on both sides of the threshold, in two chunks
    # The same noise in the three channels, or its luminance would average out.
    noise = rng.uniform(0, 150, (1200, 3, 1, 1)) + rng.uniform(0, 1, (1200, 1, 16, 16)) * span
    images = torch.from_numpy(noise.clip(0, 255).astype(np.uint8))
    expected = [reference(image.permute(1, 2, 0).numpy(), fraction_threshold=0.15) for image in images]
    assert 300 < sum(expected) < 900
    assert (contrast(images) < 0.15).tolist() == expected


@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.3])
def test_contrast_agrees_on_two_grey_levels_that_meet_the_threshold_exactly(threshold: float) -> None:
    # Black and one grey level: the contrast is level / 510, which is the threshold itself for some of these.
    levels = torch.arange(40, 200, dtype=torch.uint8)
    images = torch.zeros(len(levels), 3, 8, 8, dtype=torch.uint8)
    assert contrast(images[:1]).item() == 0
    images[:1, :, 4:] = 255
    assert contrast(images[:1]).item() == pytest.approx(0.5)
    images[:, :, 4:] = levels[:, None, None, None]
    expected = [reference(image.permute(1, 2, 0).numpy(), fraction_threshold=threshold) for image in images]
    assert 0 < sum(expected) < len(expected)
    assert (contrast(images) < threshold).tolist() == expected
