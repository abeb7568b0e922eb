"""Which images show next to nothing."""

import numpy as np
import torch
from torch import Tensor

_LUMINANCE = np.array([0.2125, 0.7154, 0.0721])
_CHUNK = 1024  # images at a time, which bounds the float64 copy


def contrast(images: Tensor) -> Tensor:
    """How much of the brightness scale each image uses, as `skimage.exposure.is_low_contrast` measures it.

    The luminance 0.2125 R + 0.7154 G + 0.0721 B lies in [0, 1]; its 1st percentile is taken from its 99th. scikit-image
    then divides by the span of the float type, which is 2 (from -1 to 1), so that black on white comes out as 0.5:
    a threshold of 0.15 asks for 0.3 of the scale, 76.5 grey levels of 255.

    Args:
        images: (N, 3, H, W) uint8.

    Returns:
        (N,) float64 in [0, 0.5].
    """
    ratios = [torch.empty(0, dtype=torch.float64)]
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK].permute(0, 2, 3, 1).contiguous()  # (M, 3, H, W) -> (M, H, W, 3)
        # Times 1/255 and not divided by 255: the last bit decides for an image that sits on the threshold.
        luminance = (chunk.numpy() * (1.0 / 255.0)) @ _LUMINANCE  # (M, H, W, 3) -> (M, H, W)
        low, high = np.percentile(luminance.reshape(len(chunk), -1), [1, 99], axis=1)
        ratios.append(torch.from_numpy((high - low) / 2.0))
    return torch.cat(ratios)


def is_low_contrast(images: Tensor, threshold: float) -> Tensor:
    """Tell the images of low contrast, one by one as scikit-image does.

    Args:
        images: (N, 3, H, W) uint8.
        threshold: `fraction_threshold` of `skimage.exposure.is_low_contrast`; at 0 no image is low, above 0.5 all are.

    Returns:
        (N,) bool.
    """
    return contrast(images) < threshold
