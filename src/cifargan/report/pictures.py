"""Pictures that a run left, small enough to go into a page."""

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from cifargan.errors import UserError
from cifargan.report.charts import evenly
from cifargan.untrusted import readable, refusing

MAX_PIXELS = 4096 * 4096  # of a file that is read; a grid of ours has less than a million
# How many pictures, WebP's quality, and the longest side: the first plan that fits is taken.
PLANS = (
    *((12, 82, 1400), (12, 75, 1400), (10, 74, 1400), (8, 72, 1400), (7, 72, 720), (6, 70, 720), (5, 68, 720)),
    *((4, 66, 720), (3, 60, 512), (2, 50, 400), (1, 40, 340)),
)
BASE64 = 4 / 3  # letters a byte


@dataclass(frozen=True, kw_only=True)
class Source:
    """A picture before it is made small.

    Attributes:
        label: what the slider says at it.
        read: gives it.
    """

    label: str
    read: Callable[[], Image.Image]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture for a page: its bytes are our own encoding, whatever the file held."""

    label: str
    data: bytes
    width: int
    height: int

    @property
    def address(self) -> str:
        """As a data URI."""
        return f"data:image/webp;base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True, kw_only=True)
class Slides:
    """Pictures along a slider, and what was left out of them."""

    pictures: tuple[Picture, ...]
    left_out: str

    @property
    def size(self) -> float:
        """Characters of the page that they take."""
        return sum(len(picture.data) for picture in self.pictures) * BASE64


def open_picture(path: Path) -> Image.Image:
    """Read a PNG file that a stranger may have made.

    Raises:
        UserError: it is no PNG, damaged, or far too large.
    """
    with (
        refusing(f"{readable(str(path))} is damaged or no picture of ours"),
        Image.open(path, formats=["PNG"]) as image,
    ):
        if image.width * image.height > MAX_PIXELS:
            raise ValueError("too large")
        return image.convert("RGB")


def training_grids(samples: Path) -> list[Source]:
    """The grids from latents that stay the same, in the order of their steps."""
    found = {int(match[1]): path for path in samples.glob("step_*.png") if (match := re.search(r"_(\d+)$", path.stem))}
    return [
        Source(label=f"step {step:,}", read=lambda path=found[step]: open_picture(path))  # type: ignore[misc]
        for step in sorted(found)
    ]


def slides(sources: Sequence[Source], budget: float) -> Slides:
    """As many pictures as fit, as good as fits.

    Args:
        sources: along the slider.
        budget: characters of the page that they may take.
    """
    for most, quality, side in PLANS:
        chosen: list[Picture] = []
        broken = 0
        for source in evenly(sources, most):
            try:
                chosen.append(_encoded(source, quality, side))
            except UserError:
                broken += 1
        found = Slides(pictures=tuple(chosen), left_out="")
        if found.size <= budget:
            break
    left = len(sources) - len(chosen) - broken
    notes = [f"{len(chosen)} of {len(sources)} pictures are shown"] if left else []
    notes += [f"{broken} could not be read"] if broken else []
    return replace(found, left_out="; ".join(notes))


def _encoded(source: Source, quality: int, side: int) -> Picture:
    image = source.read()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, format="WEBP", quality=quality, method=4)
    return Picture(label=source.label, data=encoded.getvalue(), width=image.width, height=image.height)
