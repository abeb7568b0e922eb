"""Pictures with a line under each."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cifargan.images import WHITE, upscale

FONT = 11
MARGIN = 4


def captioned_sheet(images: Tensor, captions: Sequence[str], *, columns: int, scale: int = 2) -> Tensor:
    """Lay images out row by row, each with its caption below it.

    Args:
        images: (N, 3, H, W) uint8, N at least 1.
        captions: N short lines; what is wider than its image makes all cells wider.
        columns: images a row.
        scale: enlarge the images by this whole factor.

    Returns:
        (3, H', W') uint8, on white.
    """
    font = ImageFont.load_default(size=FONT)
    big = upscale(images, scale).permute(0, 2, 3, 1).numpy()  # (N, 3, H, W) -> (N, H', W', 3)
    height, width = big.shape[1:3]
    line = FONT + 2 * MARGIN
    cell = max(width, math.ceil(max(font.getlength(caption) for caption in captions))) + 2 * MARGIN
    columns = min(columns, len(big))
    rows = -(-len(big) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * (height + line + MARGIN)), (WHITE, WHITE, WHITE))
    draw = ImageDraw.Draw(sheet)
    for i, (picture, caption) in enumerate(zip(big, captions, strict=True)):
        x, y = i % columns * cell, i // columns * (height + line + MARGIN) + MARGIN
        sheet.paste(Image.fromarray(picture), (x + (cell - width) // 2, y))
        draw.text((x + cell / 2, y + height + line / 2), caption, fill="black", font=font, anchor="mm")
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1)  # (H', W', 3) -> (3, H', W')
