"""Between tensors and pictures: [-1, 1] <-> uint8, grids, sheets, PNG and GIF files.

Pictures are uint8 RGB tensors in [0, 255], channels first: (N, 3, H, W) for many, (3, H, W) for one.
"""

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from cifargan.files import write_atomically

WHITE = 255


def to_uint8(x: Tensor) -> Tensor:
    """Quantise images to the nearest of 256 levels: -1 becomes 0, 1 becomes 255, anything outside is clamped.

    Args:
        x: (N, 3, H, W) float images in [-1, 1].

    Returns:
        (N, 3, H, W) uint8, on the device of `x`.

    Raises:
        TypeError: `x` is not floating point, so it is not in [-1, 1].
    """
    if not x.is_floating_point():
        raise TypeError(f"to_uint8 takes floating point images in [-1, 1], not {x.dtype}")
    # A bare cast would round towards zero, half a level too dark on average, and wrap 256 to 0: round and clamp first.
    return x.float().mul(127.5).add(127.5).round().clamp(0, 255).to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Scale uint8 images to [-1, 1]: 0 becomes -1, 255 becomes 1.

    Args:
        images: (N, 3, H, W) uint8.

    Returns:
        (N, 3, H, W) float32; `to_uint8` brings back exactly `images`.

    Raises:
        TypeError: `images` is not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"to_float takes uint8 images, not {images.dtype}")
    return images.float().div(127.5).sub(1)


def upscale(images: Tensor, factor: int) -> Tensor:
    """Enlarge by a whole factor without smoothing, so that every pixel of a small image can be seen.

    Args:
        images: (..., H, W) of any dtype.
        factor: How many pixels one becomes in each direction, at least 1.

    Returns:
        (..., H * factor, W * factor).
    """
    return images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def grid(images: Tensor, *, columns: int, padding: int = 2) -> Tensor:
    """Lay images out row by row on white.

    Args:
        images: (N, 3, H, W) uint8.
        columns: Images a row; fewer than that when N is less.
        padding: White pixels around every image. A single image gets none.

    Returns:
        (3, H', W') uint8.
    """
    laid_out: Tensor = make_grid(images, nrow=columns, padding=padding, pad_value=WHITE)
    return laid_out


def labelled_sheet(rows: Mapping[str, Tensor], *, padding: int = 2, scale: int = 1) -> Tensor:
    """Draw an overview of all classes: one row a class, its name at the left.

    Args:
        rows: Class name -> (n, 3, H, W) uint8, all of one H and W; a row with fewer images ends in white.
        padding: White pixels around every image.
        scale: Enlarge the images by this whole factor. Raised where rows would be lower than the writing.

    Returns:
        (3, H', W') uint8.
    """
    columns = max(len(images) for images in rows.values())
    height = next(iter(rows.values())).shape[-2]
    scale = max(scale, math.ceil(14 / height))
    filled = [
        torch.cat([images, images.new_full((columns - len(images), *images.shape[1:]), WHITE)])
        for images in rows.values()
    ]
    # A white image in front of each row keeps the grid's spacing and makes torchvision pad even a single picture.
    cells = torch.cat([torch.cat([torch.full_like(row[:1], WHITE), row]) for row in filled])
    cell_height, cell_width = height * scale, cells.shape[-1] * scale
    pictures = grid(upscale(cells, scale), columns=columns + 1, padding=padding)[..., cell_width + padding :]

    font = ImageFont.load_default(size=min(max(cell_height // 3, 12), 24))
    margin = 6
    width = math.ceil(max(font.getlength(name) for name in rows)) + 2 * margin
    names = Image.new("RGB", (width, pictures.shape[-2]), "white")
    draw = ImageDraw.Draw(names)
    for row, name in enumerate(rows):
        middle = padding + row * (cell_height + padding) + cell_height / 2
        draw.text((margin, middle), name, fill="black", font=font, anchor="lm")
    written = torch.from_numpy(np.array(names)).permute(2, 0, 1)  # (H', width, 3) -> (3, H', width)
    return torch.cat([written, pictures.cpu()], dim=2)


def save_png(image: Tensor, path: str | os.PathLike[str]) -> None:
    """Write one picture as PNG. The file appears whole or not at all.

    Args:
        image: (3, H, W) uint8.
        path: Where to; missing folders are made, an existing file is replaced.

    Raises:
        UserError: The file cannot be written.
    """
    encoded = io.BytesIO()
    _to_pil(image).save(encoded, format="PNG")
    write_atomically(Path(path), encoded.getvalue())


def save_gif(frames: Sequence[Tensor], path: str | os.PathLike[str], *, milliseconds: int = 100) -> None:
    """Write pictures as an endless GIF animation. The file appears whole or not at all.

    GIF knows 256 colours a frame, so it is for looking at, not for measuring. Equal neighbours are stored as one
    frame that stays longer.

    Args:
        frames: At least one (3, H, W) uint8, all of one size.
        path: Where to; missing folders are made, an existing file is replaced.
        milliseconds: How long a frame stays; the format rounds down to tens.

    Raises:
        UserError: The file cannot be written.
    """
    first, *rest = (_to_pil(frame) for frame in frames)
    encoded = io.BytesIO()
    first.save(encoded, format="GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0)
    write_atomically(Path(path), encoded.getvalue())


def _to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())  # (3, H, W) -> (H, W, 3)
