"""Charts as SVG, and the text of a page."""

import base64
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from cifargan.report.page import ROWS, Line, chart, evenly

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
    "points",
    [
        [(0.0, 0.0)],
        [(1.0, 5.0), (2.0, 5.0)],
        [(100.0, -3.7), (250.0, 11.2), (900.0, 0.003)],
        [(0.0, 1e-7), (1.0, 3e-7)],
        [(1e9, 1e11), (2e9, -1e11)],
        [(0.0, 5e-324), (1.0, 1e-323)],
    ],
)
def test_every_point_can_be_drawn(points: list[tuple[float, float]]) -> None:
    drawn = chart([Line(label="a", points=points)], title="t", x="x", y="y")
    assert drawn is not None
    svg = ElementTree.fromstring(base64.b64decode(drawn.picture.partition(",")[2]))
    assert svg.tag == f"{SVG}svg"
    assert len(list(svg.iter(f"{SVG}use"))) > len(points)  # a marker for each point, ticks


def test_what_diverged_does_not_flatten_the_rest() -> None:
    lines = [
        Line(label="a", points=[(1.0, 1.0), (2.0, 2.0), (3.0, 1e300)], notes=["x", "y", "z"]),
        Line(label="b", points=[(1.0, 1e200)]),
    ]
    drawn = chart(lines, title="t", x="x", y="y")
    assert drawn is not None
    assert [line.rows() for line in drawn.lines] == [[("x", "1", "1"), ("y", "2", "2")]]
    assert chart(lines[1:], title="t", x="x", y="y") is None


def test_the_same_lines_give_the_same_bytes_and_matplotlib_keeps_its_settings() -> None:
    before = dict(mpl.rcParams)
    first, second = (chart([Line(label="a", points=[(0.0, 1.0)])], title="t", x="x", y="y") for _ in range(2))
    assert first == second is not None
    assert dict(mpl.rcParams) == before


def test_the_table_below_a_chart_is_short() -> None:
    rows = Line(label="a", points=[(float(i), 1.0) for i in range(1000)]).rows()
    assert len(rows) == ROWS
    assert (rows[0], rows[-1]) == (("", "0", "1"), ("", "999", "1"))


def test_lines_can_be_told_apart() -> None:
    assert len({Line(label="a", points=[], style=i).css for i in range(24)}) == 24


@pytest.mark.parametrize(("items", "n", "expected"), [(5, 9, [0, 1, 2, 3, 4]), (21, 3, [0, 10, 20]), (4, 1, [3])])
def test_evenly_keeps_both_ends(items: int, n: int, expected: list[int]) -> None:
    assert evenly(range(items), n) == expected
