"""One page about a data set that needs nothing else, and the same as PNG files."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
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
from cifargan.images import WHITE, labelled_sheet, save_png, upscale
from cifargan.report.charts import Line, chart
from cifargan.report.markup import Html, document, element
from cifargan.report.style import STYLE
from cifargan.untrusted import readable

SHOWN_LOW = 100  # images of low contrast on the page of a split
SHOWN_PAIRS = 48
FONT = 11
MARGIN = 4
BIN = 8  # levels that a point of a histogram stands for
CHANNELS = (("red", 6, "#be123c"), ("green", 2, "#15803d"), ("blue", 0, "#0b57d0"))  # name, style on the page, colour
OWN_STYLE = """
img.sheet-picture { display: block; max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
.small { display: flex; flex-wrap: wrap; gap: .8rem; margin: .8rem 0; }
.small figure { width: 6.5rem; }
.small img { width: 64px; height: 64px; image-rendering: pixelated; display: block; }
.small .pair { width: 9.5rem; }
.small .pair div { display: flex; gap: 4px; }
.small figcaption { font-size: .78rem; color: var(--soft); overflow-wrap: anywhere; }
"""


def write_inspection(found: Inspection, out: Path, *, per_class: int) -> list[Path]:
    """Write the page and its pictures.

    Args:
        found: what it is about.
        out: the folder; files of the same names in it are replaced.
        per_class: images of each class in the overview.

    Returns:
        The files, the page first.

    Raises:
        UserError: a file cannot be written.
    """
    sheets = pictures(found, per_class=per_class)
    paths = []
    for name, picture in sheets.items():
        save_png(picture, out / f"{name}.png")
        paths.append(out / f"{name}.png")
    write_atomically(out / "index.html", page(found, sheets).encode())
    return [out / "index.html", *paths]


def pictures(found: Inspection, *, per_class: int) -> dict[str, Tensor]:
    """Every picture by the name of its file, (3, H, W) uint8 each."""
    sheets: dict[str, Tensor] = {}
    for i, (split, images) in enumerate(found.splits.items()):
        # A split may be called anything that a folder may be called, a file name of ours not.
        stem = split if split in ("train", "test") else f"split{i}"
        chosen = {
            name: own[:: max(1, len(own) // per_class)][:per_class]
            for label, name in enumerate(found.classes)
            if len(own := images.images[images.labels == label])
        }
        sheets[f"grid_{stem}"] = labelled_sheet(chosen, scale=2)
        shown = {
            readable(name, limit=30): mean[None] for name, mean in zip(found.classes, found.means[split], strict=True)
        }
        sheets[f"means_{stem}"] = captioned_sheet(torch.cat(list(shown.values())), list(shown), columns=5, scale=3)
        if len(low := found.low(split)[:SHOWN_LOW]):
            captions = [f"{index} {found.contrast[split][index]:.3f}" for index in low.tolist()]
            sheets[f"low_contrast_{stem}"] = captioned_sheet(images.images[low], captions, columns=10)
    sheets["histograms"] = _histograms(found)
    if pairs := _pairs(found):
        sides = torch.cat([torch.stack([found.image(a), found.image(b)]) for a, b, _ in pairs])
        captions = [_short(found, index) for a, b, _ in pairs for index in (a, b)]
        sheets["duplicates"] = captioned_sheet(sides, captions, columns=8)
    return sheets


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


def _pairs(found: Inspection) -> list[tuple[int, int, str]]:
    """The duplicates that are shown, those between splits first, and what is said of each."""
    pairs = [(group[0], second, "equal") for group in found.duplicates.equal for second in group[1:]]
    pairs += [
        (near.first, near.second, f"{near.difference:.2f}{', mirrored' if near.mirrored else ''}")
        for near in found.duplicates.near
    ]
    within = [pair for pair in pairs if found.place(pair[0])[0] == found.place(pair[1])[0]]
    between = [pair for pair in pairs if found.place(pair[0])[0] != found.place(pair[1])[0]]
    half = SHOWN_PAIRS // 2
    # Of both kinds some, and from the far end too: where the threshold lies is what one wants to see.
    return [
        *_ends(between, max(half, SHOWN_PAIRS - len(within))),
        *_ends(within, max(half, SHOWN_PAIRS - len(between))),
    ]


def _ends(pairs: list[tuple[int, int, str]], n: int) -> list[tuple[int, int, str]]:
    return pairs if len(pairs) <= n else [*pairs[: n - n // 2], *pairs[-(n // 2) :]]


def _short(found: Inspection, index: int) -> str:
    split, own = found.place(index)
    return f"{readable(split, limit=12)} {own} {readable(found.label(index), limit=12)}"


def _histograms(found: Inspection) -> Tensor:
    columns = min(5, len(found.classes))
    rows = -(-len(found.classes) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for name, counts, place in zip(found.classes, found.histograms, axes, strict=False):
        # A dollar sign would begin a formula.
        place.set_title(readable(name, limit=24).replace("$", r"\$"), fontsize="medium")
        for (_, _, colour), points in zip(CHANNELS, _points(counts), strict=True):
            place.plot([x for x, _ in points], [y for _, y in points], color=colour, linewidth=1.2)
        place.grid(visible=True, alpha=0.3)
    for place in axes[len(found.classes) :]:
        place.set_visible(False)
    figure.supxlabel("level, 0 to 255", fontsize="medium")
    figure.supylabel("share of pixels, per cent", fontsize="medium")
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=100)
    with Image.open(encoded) as image:
        pixels = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return pixels.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)


def _points(counts: Tensor) -> list[list[tuple[float, float]]]:
    """For each channel (level, per cent of its pixels a level), `BIN` levels a point."""
    shares = 100 * counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)  # (3, 256)
    means = shares.view(3, -1, BIN).mean(dim=2)
    return [[(BIN * i + (BIN - 1) / 2, value) for i, value in enumerate(row.tolist())] for row in means]


def page(found: Inspection, sheets: dict[str, Tensor]) -> str:
    """The whole document."""
    first = next(iter(found.splits.values()))
    name = readable(first.name)
    total = sum(len(images) for images in found.splits.values())
    body = element(
        "body",
        element(
            "header",
            element("h1", f"Images of {name}"),
            element(
                "p",
                f"{total:,} images of {first.image_size}x{first.image_size}, {len(found.classes)} classes. "
                f"cifargan {__version__}.",
                class_="soft",
            ),
        ),
        element(
            "main",
            element("h2", "Counts"),
            _table(count_rows(found), "Images of each class"),
            *_fingerprints(found),
            *(
                part
                for title, stem, text in (
                    ("Class means", "means_", "The mean over all images of a class, pixel by pixel."),
                    ("Some of each class", "grid_", "Evenly spread over each class."),
                )
                for part in _section(title, text, sheets, stem)
            ),
            element("h2", "Colours"),
            _table(colour_rows(found), "Mean level of each colour, 0 to 255"),
            element("div", *(_chart(found, i) for i in range(len(found.classes))), class_="charts"),
            *_low_contrast(found),
            *_duplicates(found),
        ),
        element("footer", "This page needs no network and loads nothing."),
    )
    return document(f"Images of {name}", body, style=STYLE + OWN_STYLE)


def _section(title: str, text: str, sheets: dict[str, Tensor], stem: str) -> list[Html]:
    shown = {key: sheet for key, sheet in sheets.items() if key.startswith(stem)}
    parts = [element("h2", title), element("p", text, class_="soft")]
    for key, sheet in shown.items():
        split = key.removeprefix(stem)
        parts += [element("h4", split), _image(sheet, f"{title}, {split}", "sheet-picture")]
    return parts


def _image(picture: Tensor, alt: str, class_: str | None = None) -> Html:
    encoded = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(encoded, format="PNG")
    source = f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"
    return element("img", src=source, alt=alt, width=picture.shape[2], height=picture.shape[1], class_=class_)


def _table(rows: Sequence[Sequence[str]], caption: str) -> Html:
    head, *body = rows
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *(_head(cell, i) for i, cell in enumerate(head)))),
        element(
            "tbody",
            *(
                element(
                    "tr",
                    element("th", readable(row[0]), scope="row"),
                    *(element("td", readable(cell), class_="number") for cell in row[1:]),
                )
                for row in body
            ),
        ),
    )
    return element("div", table, class_="scroll", tabindex=0)


def _head(cell: str, column: int) -> Html:
    return element("th", readable(cell), scope="col", class_="number" if column else None)


def _fingerprints(found: Inspection) -> list[Html]:
    return [
        element("p", f"{readable(split)}: fingerprint {images.fingerprint}", class_="note")
        for split, images in found.splits.items()
    ]


def _chart(found: Inspection, label: int) -> Html:
    lines = [
        Line(label=channel, points=tuple(points), notes=("",) * len(points), style=style)
        for (channel, style, _), points in zip(CHANNELS, _points(found.histograms[label]), strict=True)
    ]
    title = readable(found.classes[label])
    return chart(lines, name=f"colours-{label}", title=title, x="level", y="per cent", note="share of its pixels")


def _low_contrast(found: Inspection) -> list[Html]:
    parts = [
        element("h2", "Low contrast"),
        element(
            "p",
            f"Images whose luminance uses little of the scale, as scikit-image measures it; "
            f"data.drop_low_contrast={found.threshold:g} would leave out those below {found.threshold:g}. The number "
            f"under an image is its index in its split, then its contrast.",
            class_="soft",
        ),
        _table(contrast_rows(found), "Images of low contrast"),
    ]
    for split, images in found.splits.items():
        low = found.low(split)
        figures = []
        for index in low[:SHOWN_LOW].tolist():
            name = readable(found.classes[int(images.labels[index])])
            text = f"{index}: {float(found.contrast[split][index]):.3f} {name}"
            figures.append(element("figure", _image(images.images[index], name), element("figcaption", text)))
        shown = f"the {len(figures)} lowest of {len(low):,}" if len(low) > len(figures) else f"{len(low):,}"
        parts += [element("h4", f"{readable(split)}: {shown}"), element("div", *figures, class_="small")]
    return parts


def _duplicates(found: Inspection) -> list[Html]:
    figures = []
    for a, b, said in _pairs(found):
        sides = element("div", *(_image(found.image(index), readable(found.label(index))) for index in (a, b)))
        text = f"{_short(found, a)} and {_short(found, b)}: {said}"
        figures.append(element("figure", sides, element("figcaption", text), class_="pair"))
    return [
        element("h2", "Duplicates"),
        element(
            "p",
            f"Equal: the same bytes, each counted once against the first of its kind. Nearly equal: reduced to {REDUCED}x{REDUCED}, freed of "
            f"mean colour and contrast, and as they are or mirrored, their cosine is at least {CANDIDATE:g}; and at full "
            f"size the mean absolute difference is at most {NEAR:g} standard deviations. Images whose standard deviation "
            f"is below {FLAT:g} levels are compared for equality alone. Under a pair: split, index and class of both, and "
            "the difference.",
            class_="soft",
        ),
        _table(duplicate_rows(found), "Pairs"),
        element("div", *figures, class_="small"),
    ]
