"""Handwritten digits that need no download: a first run on a plane."""

import torch
from torch import Tensor

from cifargan.data.sources import ImageSet, ImageSource, choose, resize
from cifargan.errors import UserError

_HELD_OUT = 6


class Digits(ImageSource):
    """scikit-learn's 1,797 digits of 8x8 pixels and 17 grey levels, enlarged, as grey RGB.

    Every sixth image, beginning with the sixth, is in `test` (299), all others are in `train` (1,498).

    Args:
        image_size: H = W that the 8x8 pixels are enlarged to, bicubic.
        splits: Any of `train` and `test`.
        classes: Which digits, as names "0" to "9"; empty: all.
        flip: Whether a mirrored digit is as good; it is not.
        drop_low_contrast: Leave out images that scikit-image calls low in contrast at this `fraction_threshold`.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        splits: list[str] = ["train"],  # noqa: B006 - the base class copies it
        classes: list[str] = [],  # noqa: B006
        flip: bool = False,
        drop_low_contrast: float = 0.0,
    ) -> None:
        super().__init__(
            splits=splits, classes=classes, image_size=image_size, flip=flip, drop_low_contrast=drop_low_contrast
        )
        if not choose(self.splits, ["train", "test"], setting="data.splits", kind="split"):
            raise UserError("data.splits: name at least one of train, test")

    def load(self) -> ImageSet:
        """Read the digits that come with scikit-learn."""
        # scikit-learn takes a second to import, which no other source should pay.
        from sklearn.datasets import load_digits

        data = load_digits()
        levels = torch.from_numpy(data.images)  # (1797, 8, 8) float64, 0 to 16
        grey = (levels * (255.0 / 16.0)).round().to(torch.uint8)
        images = resize(grey[:, None].repeat(1, 3, 1, 1), self.image_size)  # (N, 8, 8) -> (N, 3, H, H)
        labels = torch.from_numpy(data.target).to(torch.int64)
        held_out = torch.arange(len(labels)) % _HELD_OUT == _HELD_OUT - 1
        members: dict[str, Tensor] = {"train": ~held_out, "test": held_out}
        return self._assemble(
            [(images[members[split]], labels[members[split]]) for split in self.splits],
            name="digits",
            splits=self.splits,
            classes=[str(digit) for digit in range(10)],
        )
