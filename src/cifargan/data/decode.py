"""Decode PNG, JPEG and WebP files to uint8 pixels, in several threads."""

import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cifargan.data.storage import BrokenFileError, Storage
from cifargan.progress import Progress
from cifargan.untrusted import readable, require_memory

MAX_PIXELS = 64_000_000
MAX_THREADS = 8
CHUNK = 256  # files that a thread decodes at a time
FORMATS = ("PNG", "JPEG", "WEBP")  # PIL's other decoders never see untrusted bytes


def decode(data: bytes, *, image_size: int, resample: bool = True) -> NDArray[np.uint8]:
    """Decode one image: apply its EXIF rotation, put it on white, crop the square in its middle, resize it.

    Args:
        data: A PNG, JPEG or WebP file of any mode; 16-bit grey is scaled to 8 bits; of an animation, the first frame.
        image_size: S. An image of another size is resized with PIL's antialiased bicubic filter.
        resample: Whether images of another size are accepted.

    Returns:
        (3, S, S) uint8.

    Raises:
        Exception: Whatever PIL raises on a file that is no image, is cut short, or is too large.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS // 1_000_000} megapixels")
        ImageOps.exif_transpose(image, in_place=True)
        if not resample and image.size != (image_size, image_size):
            raise ValueError(f"{image.width}x{image.height} where others are {image_size}x{image_size}")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = _rgb(image.crop((left, top, left + side, top + side)))
        if side != image_size:
            square = square.resize((image_size, image_size), Image.Resampling.BICUBIC)
        return np.asarray(square).transpose(2, 0, 1)  # (S, S, 3) -> (3, S, S)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # PIL's own conversion to 8 bits clips such values at 255 instead of scaling them.
        grey = np.asarray(image).astype(np.float64) / 257.0
        image = Image.fromarray(np.rint(grey.clip(0.0, 255.0)).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image.convert("RGB")


def decode_files(
    storage: Storage,
    names: Sequence[str],
    *,
    image_size: int,
    label: str,
    on_broken: Callable[[str, str], None],
    resample: bool = True,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Decode many files and show the progress.

    Args:
        storage: What holds them.
        names: N file names.
        image_size: S.
        label: What they are, for the progress bar.
        on_broken: Called in this thread, in the order of `names`, with a broken file and the reason; may raise to stop.
        resample: Whether files of another size are resized; otherwise they count as broken.

    Returns:
        (M, 3, S, S) uint8 images, and (N,) bool that is True for the M files that could be decoded.

    Raises:
        UserError: The images would not fit into memory.
        OSError: A file could not be read at all.
    """
    require_memory(3 * image_size**2 * len(names), f"{label}: {len(names):,} images of {image_size}x{image_size}")
    images = np.empty((len(names), 3, image_size, image_size), dtype=np.uint8)
    good = np.ones(len(names), dtype=np.bool_)

    def decode_one(i: int) -> str:
        """Decode file `i` into `images`; give the reason if it is broken, else an empty text."""
        try:
            data = storage.read(names[i])
        except BrokenFileError as error:
            return str(error)
        try:
            images[i] = decode(data, image_size=image_size, resample=resample)
        except UnidentifiedImageError:
            return "not a PNG, JPEG or WebP image"
        except Exception as error:  # a damaged file makes PIL raise almost anything
            return readable(str(error), limit=120) or type(error).__name__
        return ""

    def decode_chunk(chunk: range) -> list[str]:
        return [decode_one(i) for i in chunk]

    chunks = [range(start, min(start + CHUNK, len(names))) for start in range(0, len(names), CHUNK)]
    # PIL warns about large images (refused by `decode`), odd palettes and odd metadata (harmless).
    with warnings.catch_warnings(action="ignore"), Progress(len(names), label=label, unit="file") as progress:
        # PIL releases Python's global lock while it decodes and resizes.
        pool = ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS))
        try:
            for chunk, reasons in zip(chunks, pool.map(decode_chunk, chunks), strict=True):
                for i, reason in zip(chunk, reasons, strict=True):
                    if reason:
                        on_broken(names[i], reason)
                        good[i] = False
                progress.update(len(chunk))
        finally:
            pool.shutdown(cancel_futures=True)
    return (images if good.all() else images[good]), good
