"""Write what `cifargan data inspect` finds: PNG files, and one page that needs nothing else."""

import io
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
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
from cifargan.images import labelled_sheet
from cifargan.report.page import data_uri, evenly, render
from cifargan.untrusted import readable

SHOWN_LOW = 100  # images of low contrast per split
SHOWN_PAIRS = 48
BIN = 8  # levels per point of a histogram
COLOURS = ("#be123c", "#15803d", "#0b57d0")  # of the red, the green and the blue curve


Figures = list[tuple[list[str], str]]  # the pictures and the caption of each figure


def write_inspection(found: Inspection, out: Path, *, per_class: int) -> list[Path]:
    """Write the page, and its two larger kinds of pictures as PNG files too.

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
    sheets: dict[str, str] = {}
    for name, heading, png in _sheets(found, per_class):
        paths.append(out / f"{name}.png")
        write_atomically(paths[-1], png)
        sheets[heading] = data_uri("png", png)
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
        sheets=sheets,
        means={readable(split): _means(found, split) for split in found.splits},
        low={readable(split): (len(found.low(split)), _low(found, split)) for split in found.splits},
        duplicates=_duplicates(found),
        threshold=found.threshold,
        near={"reduced": REDUCED, "candidate": CANDIDATE, "near": NEAR, "flat": FLAT},
    )
    write_atomically(paths[0], page)
    return paths


def _sheets(found: Inspection, per_class: int) -> Iterator[tuple[str, str, bytes]]:
    """Name, heading and PNG of each sheet: examples of each split, and the histograms without a heading."""
    for i, (split, images) in enumerate(found.splits.items()):
        chosen = {
            name: own[:: max(1, len(own) // per_class)][:per_class]
            for label, name in enumerate(found.classes)
            if len(own := images.images[images.labels == label])
        }
        # A split may have any name that a folder may have, but not every one is safe in a file name of ours.
        name = split if split in ("train", "test") else f"split{i}"
        yield f"grid_{name}", readable(split), _png(labelled_sheet(chosen, scale=2))
    yield "histograms", "", _histograms(found)


def _means(found: Inspection, split: str) -> Figures:
    return [([_address(mean)], readable(name)) for name, mean in zip(found.classes, found.means[split], strict=True)]


def _low(found: Inspection, split: str) -> Figures:
    images, contrast = found.splits[split], found.contrast[split]
    return [
        ([_address(images.images[i])], f"{i}: {contrast[i]:.3f} {readable(found.classes[int(images.labels[i])])}")
        for i in found.low(split)[:SHOWN_LOW].tolist()
    ]


def _duplicates(found: Inspection) -> Figures:
    """The pairs to show, those between splits first."""
    pairs = [(group[0], second, "equal") for group in found.duplicates.equal for second in group[1:]]
    pairs += [
        (near.first, near.second, f"{near.difference:.2f}{', mirrored' if near.mirrored else ''}")
        for near in found.duplicates.near
    ]
    within = [pair for pair in pairs if found.place(pair[0])[0] == found.place(pair[1])[0]]
    between = [pair for pair in pairs if found.place(pair[0])[0] != found.place(pair[1])[0]]
    # The most different ones too, since they show where the threshold is.
    return [
        ([_address(found.image(a)), _address(found.image(b))], f"{_short(found, a)} and {_short(found, b)}: {said}")
        for a, b, said in evenly(between, SHOWN_PAIRS // 2) + evenly(within, SHOWN_PAIRS // 2)
    ]


def _short(found: Inspection, index: int) -> str:
    split, own = found.place(index)
    return f"{readable(split, limit=40)} {own} {readable(found.label(index), limit=40)}"


def _address(picture: Tensor) -> str:
    return data_uri("png", _png(picture))


def _png(picture: Tensor) -> bytes:
    """A (3, H, W) uint8 picture as a PNG file."""
    encoded = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(encoded, format="PNG")
    return encoded.getvalue()


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
