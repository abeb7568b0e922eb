"""What is done to the images of every source alike."""

import pytest
import torch
from torch import Tensor

from cifargan.data.sources import ImageSet, ImageSource, choose, resize
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


def test_splits_are_joined_in_order() -> None:
    rows = Rows().load()
    assert colours(rows.images) == [0, 10, 20, 30, 40, 50]
    assert rows.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (rows.classes, rows.splits, rows.num_classes, rows.image_size, len(rows)) == (
        ("x", "y", "z"),
        ("a", "b"),
        3,
        4,
        6,
    )


def test_a_subset_of_classes_is_numbered_as_it_is_named() -> None:
    rows = Rows(classes=["z", "x"]).load()
    assert rows.classes == ("z", "x")
    assert colours(rows.images) == [0, 20, 30, 50]
    assert rows.labels.tolist() == [1, 0, 1, 0]


def test_low_contrast_images_are_dropped() -> None:
    rows = Rows(classes=["x"], drop_low_contrast=0.1).load()
    assert colours(rows.images) == [30]


def test_a_class_that_is_left_empty_is_an_error() -> None:
    with pytest.raises(UserError, match=r"class 'y' of rows has no image above data\.drop_low_contrast=0\.1"):
        Rows(drop_low_contrast=0.1).load()


def test_unknown_names_come_with_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"data\.classes: there is no class 'hors'; did you mean horse"):
        choose(["ship", "hors"], ["horse", "ship"], setting="data.classes", kind="class")
    with pytest.raises(UserError, match="twice"):
        choose(["ship", "ship"], ["horse", "ship"], setting="data.classes", kind="class")


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_threshold_out_of_range_is_an_error(value: float) -> None:
    with pytest.raises(UserError, match=r"data\.drop_low_contrast"):
        Rows(drop_low_contrast=value)


def make(images: Tensor, labels: Tensor, classes: tuple[str, ...] = ("x", "y")) -> ImageSet:
    return ImageSet(images=images, labels=labels, classes=classes, name="n", splits=("a",), flip=True)


def test_the_fingerprint_tells_what_matters() -> None:
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
