"""Write what `cifargan data inspect` finds: PNG files, and one page that needs nothing else."""

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cifargan import __version__
from cifargan.data.inspect import (
    CANDIDATE,
    FLAT,
    NEAR,
    REDUCED,
    Inspection,
    colour_rows,
    contrast_rows,
    count_rows,
    duplicate_rows,
)
from cifargan.files import write_atomically
from cifargan.images import WHITE, labelled_sheet, upscale
from cifargan.report.page import data_uri, evenly, render
from cifargan.untrusted import readable

SHOWN_LOW = 100  # images of low contrast per split
SHOWN_PAIRS = 48
FONT, MARGIN = 11, 4  # pixels, of the captions in a sheet
BIN = 8  # levels per point of a histogram
COLOURS = ("#be123c", "#15803d", "#0b57d0")  # of the red, the green and the blue curve


def write_inspection(found: Inspection, out: Path, *, per_class: int) -> list[Path]:
    """Write the page and its pictures.

    Args:
        found: the results.
        out: the folder; files of the same names in it are replaced.
        per_class: images of each class in the overview.

    Returns:
        The files, the page first.

    Raises:
        UserError: a file cannot be written.
    """
    paths = [out / "index.html"]
    sections: dict[str, list[tuple[str, str]]] = {}
    for section, name, heading, png in _pictures(found, per_class):
        paths.append(out / f"{name}.png")
        write_atomically(paths[-1], png)
        sections.setdefault(section, []).append((heading, data_uri("png", png)))
    images = next(iter(found.splits.values()))
    tables = {"counts": count_rows, "colours": colour_rows, "contrast": contrast_rows, "duplicates": duplicate_rows}
    page = render(
        "dataset.html.j2",
        title=f"Images of {readable(images.name)}",
        version=__version__,
        total=sum(len(split) for split in found.splits.values()),
        size=images.image_size,
        classes=len(found.classes),
        tables={name: [[readable(cell) for cell in row] for row in rows(found)] for name, rows in tables.items()},
        fingerprints={readable(split): images.fingerprint for split, images in found.splits.items()},
        pictures=sections,
        threshold=found.threshold,
        near={"reduced": REDUCED, "candidate": CANDIDATE, "near": NEAR, "flat": FLAT},
    )
    write_atomically(paths[0], page)
    return paths


def _pictures(found: Inspection, per_class: int) -> Iterator[tuple[str, str, str, bytes]]:
    """Section of the page, name of the file, heading and PNG of each picture."""
    for i, (split, images) in enumerate(found.splits.items()):
        # A split may have any name that a folder may have, but not every one is safe in a file name of ours.
        stem, heading = split if split in ("train", "test") else f"split{i}", readable(split)
        names = [readable(name, limit=30) for name in found.classes]
        chosen = {
            name: own[:: max(1, len(own) // per_class)][:per_class]
            for label, name in enumerate(found.classes)
            if len(own := images.images[images.labels == label])
        }
        yield "grids", f"grid_{stem}", heading, _png(labelled_sheet(chosen, scale=2))
        means = _captioned_sheet(found.means[split], names, columns=5, scale=3)
        yield "means", f"means_{stem}", heading, _png(means)
        low = found.low(split)
        if shown := low[:SHOWN_LOW].tolist():
            captions = [
                f"{index} {found.contrast[split][index]:.3f} {names[int(images.labels[index])]}" for index in shown
            ]
            sheet = _captioned_sheet(images.images[shown], captions, columns=8)
            yield "contrast", f"low_contrast_{stem}", f"{heading}: {len(shown):,} of {len(low):,}", _png(sheet)
    yield "colours", "histograms", "", _histograms(found)
    if pairs := _pairs(found):
        sides = torch.cat([torch.stack([found.image(a), found.image(b)]) for a, b, _ in pairs])
        captions = [_short(found, i) + more for a, b, said in pairs for i, more in ((a, ""), (b, f" ({said})"))]
        sheet = _captioned_sheet(sides, captions, columns=6)
        yield "duplicates", "duplicates", f"{len(pairs)} pairs", _png(sheet)


def _captioned_sheet(images: Tensor, captions: Sequence[str], *, columns: int, scale: int = 2) -> Tensor:
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


def _png(picture: Tensor) -> bytes:
    """A (3, H, W) uint8 picture as a PNG file."""
    encoded = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(encoded, format="PNG")
    return encoded.getvalue()


def _pairs(found: Inspection) -> list[tuple[int, int, str]]:
    """The duplicates to show, those between splits first: two images, and how much they differ."""
    pairs = [(group[0], second, "equal") for group in found.duplicates.equal for second in group[1:]]
    pairs += [
        (near.first, near.second, f"{near.difference:.2f}{' mirrored' if near.mirrored else ''}")
        for near in found.duplicates.near
    ]
    within = [pair for pair in pairs if found.place(pair[0])[0] == found.place(pair[1])[0]]
    between = [pair for pair in pairs if found.place(pair[0])[0] != found.place(pair[1])[0]]
    # The most different ones too, since they show where the threshold is.
    return evenly(between, SHOWN_PAIRS // 2) + evenly(within, SHOWN_PAIRS // 2)


def _short(found: Inspection, index: int) -> str:
    split, own = found.place(index)
    return f"{readable(split, limit=12)} {own}: {readable(found.label(index), limit=12)}"


def _histograms(found: Inspection) -> bytes:
    """The levels of each colour channel, a plot for each class, as a PNG file."""
    columns = min(5, len(found.classes))
    rows = -(-len(found.classes) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.0 * rows), layout="constrained")
    plots = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for name, counts, plot in zip(found.classes, found.histograms.double(), plots, strict=False):
        shares = 100 * counts / counts.sum(dim=1, keepdim=True).clamp(min=1)  # (3, 256)
        means = shares.view(3, -1, BIN).mean(dim=2)
        levels = [BIN * i + (BIN - 1) / 2 for i in range(means.shape[1])]
        plot.set_title(readable(name, limit=24), fontsize="medium", parse_math=False)
        for channel, colour in zip(means.tolist(), COLOURS, strict=True):
            plot.plot(levels, channel, color=colour, linewidth=1.2)
        plot.grid(visible=True, alpha=0.3)
    for plot in plots[len(found.classes) :]:
        plot.set_visible(False)
    figure.supxlabel("level, 0 to 255", fontsize="medium")
    figure.supylabel("share of pixels, per cent", fontsize="medium")
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=100)
    return encoded.getvalue()
