"""Image files to uint8 pixels, in this process or in several."""

import io
import logging
import os
import signal
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing import current_process, get_context
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cifargan.data.storage import BrokenFileError, Storage
from cifargan.progress import Progress
from cifargan.untrusted import readable, require_memory

logger = logging.getLogger(__name__)

MAX_PIXELS = 64_000_000
MAX_IN_PROCESS = 2_000  # files; below it, starting processes costs more than it saves
CHUNK = 256  # files handed to a process at a time
FORMATS = ("PNG", "JPEG", "WEBP")  # nothing else is even tried on bytes that someone else wrote


class Chunk(NamedTuple):
    """A run of decoded files."""

    images: NDArray[np.uint8]  # (M, 3, S, S), black where a file was broken
    broken: list[tuple[int, str]]  # the position in the run, and what is wrong


def decode(data: bytes, *, image_size: int, resample: bool = True) -> NDArray[np.uint8]:
    """Decode one image: upright, RGB on white, the square in its middle, resized.

    Args:
        data: A PNG, JPEG or WebP file of any mode; 16-bit grey is scaled to 8 bits; of an animation, the first frame.
        image_size: S. An image that has this size is not resampled; others go through PIL's antialiased bicubic.
        resample: whether images of another size are taken at all.

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


def decode_chunk(storage: Storage, names: Sequence[str], *, image_size: int, resample: bool = True) -> Chunk:
    """Decode a run of files in this process.

    Args:
        storage: Where they lie.
        names: M file names.
        image_size: S.
        resample: whether files of another size are resized; else they count as broken.

    Returns:
        M images and the broken ones among them.

    Raises:
        OSError: A file could not be read at all.
    """
    images = np.zeros((len(names), 3, image_size, image_size), dtype=np.uint8)
    broken = []
    with warnings.catch_warnings():
        # PIL warns of large images (refused by `decode`), odd palettes and odd metadata (harmless).
        warnings.simplefilter("ignore")
        for i, name in enumerate(names):
            try:
                data = storage.read(name)
            except BrokenFileError as error:
                broken.append((i, str(error)))
                continue
            try:
                images[i] = decode(data, image_size=image_size, resample=resample)
            except UnidentifiedImageError:
                broken.append((i, "not a PNG, JPEG or WebP image"))
            except Exception as error:  # a damaged file makes PIL raise almost anything
                broken.append((i, readable(str(error), limit=120) or type(error).__name__))
    return Chunk(images, broken)


def decode_files(
    storage: Storage,
    names: Sequence[str],
    *,
    image_size: int,
    label: str,
    on_broken: Callable[[str, str], None],
    resample: bool = True,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Decode many files, on all cores where there are enough of them, and show how far it is.

    Args:
        storage: Where they lie.
        names: N file names.
        image_size: S.
        label: What they are, for the progress bar.
        resample: Whether files of another size are resized; else they count as broken.
        on_broken: Called with the name of a broken file and what is wrong with it; may raise to stop.

    Returns:
        (M, 3, S, S) uint8 images, and (N,) bool that is True for the M files that are in it.

    Raises:
        UserError: The images would not fit into memory.
        OSError: A file could not be read at all.
    """
    require_memory(3 * image_size**2 * len(names), f"{label}: {len(names):,} images of {image_size}x{image_size}")
    images = np.empty((len(names), 3, image_size, image_size), dtype=np.uint8)
    good = np.ones(len(names), dtype=np.bool_)
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    done = 0
    with (
        closing(_results(storage, chunks, image_size, resample, workers=_workers(len(names)))) as results,
        Progress(len(names), label=label, unit="file") as progress,
    ):
        for chunk, result in zip(chunks, results, strict=True):
            for i, reason in result.broken:
                on_broken(chunk[i], reason)
                good[done + i] = False
            images[done : done + len(chunk)] = result.images
            done += len(chunk)
            progress.update(len(chunk))
    return (images if good.all() else images[good]), good


def _workers(files: int) -> int:
    # A daemonic process may not start others.
    if files <= MAX_IN_PROCESS or current_process().daemon:
        return 1
    return min(os.cpu_count() or 1, 16)


def _results(
    storage: Storage, chunks: Sequence[Sequence[str]], image_size: int, resample: bool, *, workers: int
) -> Generator[Chunk, None, None]:
    done = 0
    if workers > 1:
        # Spawned, because forking a process that has threads or a CUDA context is unsafe.
        try:
            pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (storage, image_size, resample))
            try:
                for result in pool.map(_work, chunks):
                    yield result
                    done += 1
            finally:
                pool.shutdown(cancel_futures=True)
        except (BrokenProcessPool, OSError) as error:
            # A script without a main guard, a system without semaphores; a file that cannot be read fails again below.
            logger.warning("decoding in several processes failed (%s); going on in this one", error)
    for chunk in chunks[done:]:
        yield decode_chunk(storage, chunk, image_size=image_size, resample=resample)


_worker: tuple[Storage, int, bool]  # set once in each decoding process, so that a zip is opened once and not per chunk


def _start_worker(storage: Storage, image_size: int, resample: bool) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the pool
    _worker = storage, image_size, resample


def _work(names: Sequence[str]) -> Chunk:
    storage, image_size, resample = _worker
    return decode_chunk(storage, names, image_size=image_size, resample=resample)
