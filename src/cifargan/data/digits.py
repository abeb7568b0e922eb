"""Handwritten digits from scikit-learn, which need no download."""

import torch

from cifargan.data.sources import ImageSet, ImageSource, choose_train_or_test, resize


class Digits(ImageSource):
    """scikit-learn's 1,797 digits of 8x8 pixels and 17 grey levels, enlarged, as grey RGB.

    Every sixth image, starting with the sixth, is in `test` (299); all others are in `train` (1,498).

    Args:
        splits: Any of `train` and `test`.
        classes: The digits to keep, as names "0" to "9"; empty: all.
        image_size: H = W; the 8x8 pixels are enlarged to it, bicubic.
        flip: See `ImageSource`; false, because a mirrored digit is no digit.
        drop_low_contrast: See `ImageSource`.
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
        choose_train_or_test(self.splits)

    def load(self) -> ImageSet:
        """Read the digits."""
        # scikit-learn takes a second to import, and no other source needs it.
        from sklearn.datasets import load_digits

        data = load_digits()
        levels = torch.from_numpy(data.images)  # (1797, 8, 8) float64, 0 to 16
        grey = (levels * (255.0 / 16.0)).round().to(torch.uint8)
        images = resize(grey[:, None].repeat(1, 3, 1, 1), self.image_size)  # (N, 8, 8) -> (N, 3, H, H)
        labels = torch.from_numpy(data.target).to(torch.int64)
        in_test = torch.arange(len(labels)) % 6 == 5
        members = {"train": ~in_test, "test": in_test}
        parts = [(images[members[split]], labels[members[split]]) for split in self.splits]
        return self._assemble(parts, name="digits", splits=self.splits, classes=[str(digit) for digit in range(10)])
