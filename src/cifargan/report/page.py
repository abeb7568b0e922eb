"""Build HTML pages that need no network: templates, pictures as data URIs, line charts as SVG."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

COLOURS = ("#0b57d0", "#c2410c", "#15803d", "#a21caf", "#0e7490", "#854d0e", "#be123c", "#4b5563")
DASHES = (("solid", "-"), ("dashed", "--"), ("dotted", ":"))  # the names in CSS and in matplotlib
ROWS = 25  # of the table of numbers below a chart
LARGEST = 1e12  # a diverged network logs larger values, which would flatten all others
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart.

    Attributes:
        label: its name in the legend.
        points: (x, y), finite, in the order in which they are joined.
        notes: a short text for each point; empty for none.
        style: chooses colour and dashes; lines of one run have one style on the whole page.
    """

    label: str
    points: Sequence[Point]
    notes: Sequence[str] = ()
    style: int = 0

    @property
    def css(self) -> str:
        """The classes of its stroke in the legend."""
        return f"c{self.style % len(COLOURS)} {DASHES[self.style // len(COLOURS) % len(DASHES)][0]}"

    def rows(self) -> list[tuple[str, str, str]]:
        """Note, x and y of at most `ROWS` points."""
        notes = self.notes or [""] * len(self.points)
        pairs = evenly(list(zip(self.points, notes, strict=True)), ROWS)
        return [(note, f"{x:,.6g}", f"{y:,.6g}") for (x, y), note in pairs]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart for the template `chart` macro. `x` and `y` are written into the SVG: no text of a file belongs there."""

    title: str
    lines: Sequence[Line]
    picture: str
    x: str
    y: str
    note: str


def chart(lines: Sequence[Line], *, title: str, x: str, y: str, note: str = "") -> Chart | None:
    """Draw lines; None if there is no point to draw. The same lines give the same bytes."""
    shown = [line for line in map(_without_outliers, lines) if line.points]
    if not shown:
        return None
    figure = Figure(figsize=(5.4, 3.1), layout="constrained")
    axes = figure.subplots()
    for line in shown:
        marker = "o" if line.notes or len(line.points) <= ROWS else ""
        stroke = DASHES[line.style // len(COLOURS) % len(DASHES)][1]
        colour = COLOURS[line.style % len(COLOURS)]
        xs, ys = zip(*line.points, strict=True)
        axes.plot(xs, ys, color=colour, linestyle=stroke, marker=marker, markersize=4, linewidth=1.6)
        for at, text in zip(line.points, line.notes, strict=False):
            axes.annotate(text, at, textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, alpha=0.35)
    axes.spines[["top", "right"]].set_visible(False)
    drawn = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "cifargan"}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return Chart(title=title, lines=shown, picture=data_uri("svg+xml", drawn.getvalue()), x=x, y=y, note=note)


def _without_outliers(line: Line) -> Line:
    kept = [i for i, point in enumerate(line.points) if max(map(abs, point)) <= LARGEST]
    return replace(line, points=[line.points[i] for i in kept], notes=[line.notes[i] for i in kept if line.notes])


def evenly(items: Sequence[Any], n: int) -> list[Any]:
    """At most n of some items, evenly spread, with the first and the last; for n = 1 the last."""
    if len(items) <= n:
        return list(items)
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)] if n > 1 else [items[-1]]


def data_uri(kind: str, content: bytes) -> str:
    """A picture as an address that holds all of it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def render(template: str, **content: Any) -> bytes:
    """Fill a template of this folder. Every text is escaped; undecodable bytes of file names are spelt out."""
    environment = Environment(
        loader=PackageLoader("cifargan", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(colours=COLOURS, **content)
    return page.encode("utf-8", "backslashreplace")
