"""Differentiable augmentation (DiffAugment, Zhao et al. 2020) of all images that the discriminator sees, real and fake.

Each image of a batch (N, 3, H, W) gets its own draw, from the default random generator of the batch's device. Gradients
flow through to the generator. Shape, dtype and device are kept. Images are in [-1, 1], so zero, which fills the pixels that moved
away or were cut out, is mid-grey; colour changes may leave the range.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cifargan.distributed import draw_shard
from cifargan.errors import UserError
from cifargan.objectives.base import Augment


def adjust_color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Add brightness, then scale about each pixel's channel mean, then about each image's mean.

    Args:
        x: (N, 3, H, W) float images.
        brightness: (N, 1, 1, 1), added.
        saturation: (N, 1, 1, 1), factor of the distance to the grey pixel.
        contrast: (N, 1, 1, 1), factor of the distance to the grey image.

    Returns:
        (N, 3, H, W) images.
    """
    x = x + brightness
    grey_pixel = x.mean(dim=1, keepdim=True)  # (N, 1, H, W)
    x = grey_pixel + (x - grey_pixel) * saturation
    grey_image = x.mean(dim=(1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
    return grey_image + (x - grey_image) * contrast


def translate(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Move each image by whole pixels and fill with zeros; values that stay are copied exactly.

    Args:
        x: (N, 3, H, W) float images.
        down: (N,) int64 pixels.
        right: (N,) int64 pixels.

    Returns:
        (N, 3, H, W) images.
    """
    height, width = x.shape[2:]
    row = torch.arange(height, device=x.device) - down[:, None]  # (N, H), where each row comes from
    column = torch.arange(width, device=x.device) - right[:, None]  # (N, W)
    # Wrapped around, every pixel is read once: the backward pass is a permutation, with no two gradients to add up.
    source = (row % height)[:, :, None] * width + (column % width)[:, None, :]  # (N, H, W)
    source = source.flatten(1)[:, None, :].expand(-1, x.shape[1], -1)  # (N, 3, H W)
    wrapped = x.flatten(2).gather(2, source).view(x.shape)
    inside = _is_within(row, 0, height)[:, None, :, None] & _is_within(column, 0, width)[:, None, None, :]
    return wrapped.masked_fill(~inside, 0.0)


def cut_out(x: Tensor, top: Tensor, left: Tensor, *, height: int, width: int) -> Tensor:
    """Zero a rectangle of each image; parts outside the image are ignored.

    Args:
        x: (N, 3, H, W) float images.
        top: (N,) int64, first row of the rectangle, may be negative.
        left: (N,) int64, first column, may be negative.
        height: Rows of the rectangle.
        width: Columns of the rectangle.

    Returns:
        (N, 3, H, W) images.
    """
    row = torch.arange(x.shape[2], device=x.device) - top[:, None]  # (N, H), counted from the rectangle's first
    column = torch.arange(x.shape[3], device=x.device) - left[:, None]  # (N, W)
    hole = _is_within(row, 0, height)[:, None, :, None] & _is_within(column, 0, width)[:, None, None, :]
    return x.masked_fill(hole, 0.0)


def random_color(x: Tensor) -> Tensor:
    """Brightness U(-0.5, 0.5), saturation U(0, 2), contrast U(0.5, 1.5); (N, 3, H, W) in and out."""
    draws = draw_shard(lambda n: torch.rand(3, n, 1, 1, 1, device=x.device), len(x), dim=1)
    brightness, saturation, contrast = draws.to(x.dtype)
    return adjust_color(x, brightness - 0.5, saturation * 2.0, contrast + 0.5)


def random_translation(x: Tensor, reach: int | None = None) -> Tensor:
    """Move by up to `reach` pixels each way, by default an eighth of the side; (N, 3, H, W) in and out."""
    reach_down, reach_right = ((side + 4) // 8 if reach is None else reach for side in x.shape[2:])
    return translate(x, _randint(-reach_down, reach_down, x), _randint(-reach_right, reach_right, x))


def random_cutout(x: Tensor) -> Tensor:
    """Zero a square of half the side, a quarter of the area; (N, 3, H, W) in and out.

    The centre of the square is uniform over the image, border included: as little as a quarter of it may be inside.
    """
    height, width = (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2
    # The centre of an even length lies between two pixels, where there is one place more than there are pixels.
    top = _randint(0, x.shape[2] - height % 2, x) - height // 2
    left = _randint(0, x.shape[3] - width % 2, x) - width // 2
    return cut_out(x, top, left, height=height, width=width)


POLICIES: dict[str, Callable[[Tensor], Tensor]] = {
    "color": random_color,
    "translation": random_translation,
    "cutout": random_cutout,
}
DEFAULT_POLICY = list(POLICIES)


class DiffAugment(Augment):
    """Differentiable augmentation (Zhao et al. 2020) of all images that the discriminator sees, in both steps."""

    def __init__(self, *, policy: list[str] = DEFAULT_POLICY) -> None:
        """Set up the augmentation.

        Args:
            policy: Names from color, translation, cutout, applied in the order given.

        Raises:
            UserError: If a name is unknown.
        """
        super().__init__()
        for name in policy:
            if name not in POLICIES:
                raise UserError(f"policy of DiffAugment has {name!r}: choose from {', '.join(POLICIES)}.")
        self.policy = tuple(policy)

    def forward(self, x: Tensor) -> Tensor:
        """Augment images (N, 3, H, W), float in [-1, 1], into images of the same shape and dtype."""
        for name in self.policy:
            x = POLICIES[name](x)
        return x

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"policy={list(self.policy)}"


def _is_within(index: Tensor, low: int, high: int) -> Tensor:
    return (index >= low) & (index < high)


def _randint(low: int, high: int, x: Tensor) -> Tensor:
    """Draw (N,) int64 from low to high, both included, on the device of the batch x."""
    return draw_shard(lambda n: torch.randint(low, high + 1, (n,), device=x.device), len(x))
