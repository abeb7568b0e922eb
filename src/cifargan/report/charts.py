"""Curves as inline SVG, each with a legend and its numbers as a table for those who cannot see it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from cifargan.report.markup import Html, element, join

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 12, 42
STYLES = 8  # colours in the style sheet; dashes tell more lines apart
ROWS = 25  # of the table below a chart
LARGEST = 1e12  # what diverged networks log beyond would make all else a flat line
Point = tuple[float, float]
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart.

    Attributes:
        label: what it is called in the legend.
        points: (x, y), finite, in the order in which they are joined.
        notes: a text at each point; empty for none.
        style: which colour and dashes.
    """

    label: str
    points: Sequence[Point]
    notes: Sequence[str] = field(default=())
    style: int = 0


def chart(lines: Sequence[Line], *, name: str, title: str, x: str, y: str, note: str = "", marks: bool = False) -> Html:
    """A figure with a chart; nothing at all where there is no point to draw.

    Args:
        lines: each drawn as far as its values are not astronomic.
        name: its own among the page's charts.
        title: what is shown.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        note: more about it, below.
        marks: whether each point gets a dot.
    """
    lines = [line for line in map(_drawable, lines) if line.points]
    if not lines:
        return Html("")
    horizontal = _Axis([point[0] for line in lines for point in line.points], LEFT, WIDTH - RIGHT)
    vertical = _Axis([point[1] for line in lines for point in line.points], HEIGHT - BOTTOM, TOP)
    drawing = element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", _described(lines, x, y), id=f"{name}-desc"),
        _frame(horizontal, vertical, x, y),
        *(_drawn(line, horizontal, vertical, marks=marks) for line in lines),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-desc",
    )
    return element(
        "figure",
        element("figcaption", element("strong", title), *([element("span", note, class_="note")] if note else [])),
        drawing,
        _legend(lines),
        _table(lines, title, x, y),
        class_="chart",
    )


def _drawable(line: Line) -> Line:
    notes = line.notes or [""] * len(line.points)
    kept = [both for both in zip(line.points, notes, strict=True) if max(map(abs, both[0])) <= LARGEST]
    return replace(line, points=[point for point, _ in kept], notes=[note for _, note in kept])


class _Axis:
    """Values to places, with round numbers for ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
            margin = abs(low) / 2 if abs(low) > 1e-9 else 0.5
            low, high = low - margin, high + margin
        step = _round_step((high - low) / 5)
        self.step = max(step, 1.0) if all(value == int(value) for value in values) else step
        # A whole number of steps: the frame begins and ends at a tick.
        self.low, self.high = math.floor(low / self.step) * self.step, math.ceil(high / self.step) * self.step
        self.start, self.end = start, end

    def place(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        return [self.low + i * self.step for i in range(round((self.high - self.low) / self.step) + 1)]

    def shown(self, value: float) -> str:
        decimals = max(0, -math.floor(math.log10(self.step) + 1e-9))
        large = abs(value) >= 1e6 or decimals > 6
        return f"{value:.3g}" if large else f"{value + 0:,.{decimals}f}"


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, ... at any scale."""
    power: float = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _frame(horizontal: _Axis, vertical: _Axis, x: str, y: str) -> Html:
    """Grid lines, the numbers at the ticks, the axes' names."""
    parts: list[Html] = []
    for value in vertical.ticks():
        at = vertical.place(value)
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at, class_="gridline"))
        parts.append(element("text", vertical.shown(value), x=LEFT - 6, y=at + 4, text_anchor="end"))
    for value in horizontal.ticks():
        at = horizontal.place(value)
        parts.append(element("line", x1=at, x2=at, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4, class_="tick"))
        parts.append(element("text", horizontal.shown(value), x=at, y=HEIGHT - BOTTOM + 17, text_anchor="middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(element("text", x, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle", class_="axis"))
    parts.append(
        element("text", y, transform=f"translate(12 {middle}) rotate(-90)", text_anchor="middle", class_="axis")
    )
    return join(list(parts))


def _drawn(line: Line, horizontal: _Axis, vertical: _Axis, *, marks: bool) -> Html:
    places = [(horizontal.place(px), vertical.place(py)) for px, py in line.points]
    parts = [element("polyline", points=" ".join(f"{px},{py}" for px, py in places), class_="line")]
    if marks or len(places) == 1:
        for (px, py), (vx, vy), note in zip(places, line.points, line.notes, strict=True):
            said = f"{line.label}: {vx:,.6g}, {vy:,.6g}" + (f" ({note})" if note else "")
            parts.append(element("circle", element("title", said), cx=px, cy=py, r=3.5, class_="dot"))
            if note:
                parts.append(element("text", note, x=px + 6, y=py - 5, class_="mark"))
    return element("g", *parts, class_=_style(line))


def _style(line: Line) -> str:
    return f"s{line.style % STYLES} d{line.style // STYLES % 3}"


def _legend(lines: Sequence[Line]) -> Html:
    def key(line: Line) -> Html:
        stroke = element("line", x1=0, x2=26, y1=6, y2=6, class_="line")
        return element("svg", element("g", stroke, class_=_style(line)), viewBox="0 0 26 12", aria_hidden="true")

    return element("ul", *(element("li", key(line), line.label) for line in lines), class_="legend")


def _described(lines: Sequence[Line], x: str, y: str) -> str:
    ends = [f"{line.label}: {y} {line.points[-1][1]:,.5g} at {x} {line.points[-1][0]:,.6g}" for line in lines[:STYLES]]
    more = f"; and {len(lines) - STYLES} more" if len(lines) > STYLES else ""
    return f"{y} over {x}. Last points: {'; '.join(ends)}{more}. The numbers are in the table below."


def _table(lines: Sequence[Line], title: str, x: str, y: str) -> Html:
    rows = []
    for line in lines:
        for (px, py), note in evenly(list(zip(line.points, line.notes, strict=True)), ROWS):
            label = f"{line.label} ({note})" if note else line.label
            rows.append(
                element(
                    "tr", element("th", label, scope="row"), element("td", f"{px:,.6g}"), element("td", f"{py:,.6g}")
                )
            )
    head = element("tr", *(element("th", name, scope="col") for name in ("line", x, y)))
    table = element("table", element("caption", title), element("thead", head), element("tbody", *rows))
    return element("details", element("summary", "Numbers"), element("div", table, class_="scroll", tabindex=0))


def evenly(items: Sequence[ItemT], n: int) -> list[ItemT]:
    """At most n of some items, evenly spread, the first and the last among them."""
    if len(items) <= n:
        return list(items)
    if n == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]
