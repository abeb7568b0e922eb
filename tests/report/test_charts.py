"""Markup that escapes, charts that stay in their frame, series out of logs and scores."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cifargan.report import curves
from cifargan.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, chart, evenly
from cifargan.report.curves import distance_against_recall, losses, means, score_lines
from cifargan.report.markup import Html, element
from cifargan.report.summary import summary_of
from cifargan.runs.directory import RunDirectory

EVIL = "</script><script>alert(1)</script>\"'&"


def drawn(lines: list[Line], **settings: Any) -> ElementTree.Element:
    return ElementTree.fromstring(chart(lines, name="c", title="t", x="x", y="y", **settings))


def test_text_is_escaped_and_markup_is_not() -> None:
    made = element("p", EVIL, element("b", "x"), title=EVIL, hidden=False, class_="a", aria_label=None, id=0)
    safe = "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;"
    assert made == f'<p title="{safe}" class="a" id="0">{safe}<b>x</b></p>'
    assert isinstance(made, Html)
    assert element("input", disabled=True) == "<input disabled>"


def test_undecodable_names_can_be_written() -> None:
    assert element("p", "a\udcffb").encode() == b"<p>a\\udcffb</p>"


@pytest.mark.parametrize(
    "points",
    [
        [(0.0, 0.0)],
        [(1.0, 5.0), (2.0, 5.0)],
        [(0.0, 0.0), (7.0, 0.0)],
        [(100.0, -3.7), (250.0, 11.2), (900.0, 0.003)],
        [(0.0, 1e-7), (1.0, 3e-7)],
        [(1e9, 1e11), (2e9, -1e11)],
        [(0.0251, 1600.18), (0.0451, 1564.2), (0.0387, 1545.6)],
        [(0.0, 5e-324), (1.0, 1e-323)],
    ],
)
def test_every_point_lies_in_the_frame(points: list[tuple[float, float]]) -> None:
    figure = drawn([Line(label="a", points=points)], marks=True)
    (line,) = figure.iter("polyline")
    places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert len(places) == len(points)
    for px, py in places:
        assert LEFT <= px <= WIDTH - RIGHT
        assert TOP <= py <= HEIGHT - BOTTOM
    # Higher values are higher up, larger ones further right.
    assert sorted(range(len(points)), key=lambda i: (points[i][0], i)) == sorted(
        range(len(points)), key=lambda i: (places[i][0], i)
    )
    if points[-1][1] > points[0][1] + 1e-8:
        assert places[-1][1] < places[0][1]
    ticks = [text.text for text in figure.iter("text") if text.get("text-anchor") == "end"]
    assert len(ticks) == len(set(ticks))
    assert 2 <= len(ticks) <= 9


def test_ticks_are_round_numbers() -> None:
    figure = drawn([Line(label="a", points=[(1.0, 0.13), (730.0, 0.87)])])
    texts = [text.text for text in figure.iter("text")]
    assert texts[:6] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert texts[6:11] == ["0", "200", "400", "600", "800"]


def test_what_diverged_does_not_flatten_the_rest() -> None:
    figure = drawn(
        [Line(label="a", points=[(1.0, 1.0), (2.0, 2.0), (3.0, 1e300)]), Line(label="b", points=[(1.0, 1e200)])]
    )
    assert [len(line.attrib["points"].split()) for line in figure.iter("polyline")] == [2]
    assert chart([Line(label="b", points=[(1.0, 1e200)])], name="c", title="t", x="x", y="y") == ""


def test_a_chart_can_be_read_without_being_seen() -> None:
    figure = drawn([Line(label=EVIL, points=[(1.0, 2.0), (2.0, 4.0)], notes=["0.5", "none"])], marks=True)
    (svg,) = figure.findall("svg")
    described = {child.attrib["id"]: child.text for child in svg if child.tag in ("title", "desc")}
    assert described[svg.attrib["aria-labelledby"]] == "t"
    assert f"{EVIL}: y 4 at x 2" in str(described[svg.attrib["aria-describedby"]])
    rows = [["".join(cell.itertext()) for cell in row] for row in figure.iter("tr")]
    assert rows == [["line", "x", "y"], [f"{EVIL} (0.5)", "1", "2"], [f"{EVIL} (none)", "2", "4"]]


@pytest.mark.parametrize(("items", "n", "expected"), [(5, 9, [0, 1, 2, 3, 4]), (21, 3, [0, 10, 20]), (4, 1, [3])])
def test_evenly_keeps_both_ends(items: int, n: int, expected: list[int]) -> None:
    assert evenly(range(items), n) == expected


def test_neighbours_are_averaged() -> None:
    assert means([(1.0, 1.0), (2.0, 3.0), (3.0, 10.0)], 2) == [(2.0, 2.0), (3.0, 10.0)]


def test_losses_are_read_and_thinned(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    lines: list[dict[str, Any]] = [{"step": i, "loss/generator": 1.0, "loss/discriminator": i} for i in range(1, 401)]
    lines[0] |= {"loss/generator": None, "loss/discriminator": math.nan}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 401, "lo')
    found, together = losses(RunDirectory(folder))
    assert together == 2
    assert [line.label for line in found] == ["discriminator", "generator"]
    assert len(found[0].points) == curves.POINTS
    assert found[0].points[0] == (3.0, 2.5)


def test_scores_of_one_protocol_make_a_chart(make_run: Callable[..., Path], record: Callable[..., Any]) -> None:
    one = make_run(
        "one",
        records=[record(step=1), record(step=2), record(step=1, metric="recall"), record(step=2, metric="recall")],
    )
    other = make_run(
        "other", records=[record(step=1), record(step=2, dtype="bfloat16"), record(step=3, dtype="bfloat16")]
    )
    charts = score_lines([summary_of(one), summary_of(other)], ["one", "other"])
    shapes = [(metric, [(line.label, len(line.points)) for line in lines]) for (metric, _), lines in charts.items()]
    assert sorted(shapes[:2]) == [("fid", [("one", 2), ("other", 1)]), ("fid", [("other", 2)])]
    assert shapes[2:] == [("recall", [("one", 2)])]


def test_distance_against_recall_goes_through_the_truncations(
    make_run: Callable[..., Path], record: Callable[..., Any]
) -> None:
    def judged(truncation: float | None, fid: float, recall: float, **more: Any) -> list[dict[str, Any]]:
        common = {"truncation": truncation, "subject": "run", "images": 500, **more}
        return [record(value=fid, n=500, **common), record(value=recall, metric="recall", n=100, **common)]

    folder = make_run(
        records=[
            *judged(None, 8.0, 0.6),
            *judged(0.5, 9.0, 0.3),
            *judged(1.0, 7.0, 0.5),
            # Against other images, and with a recall of other features than the distance: neither belongs to the curve.
            *judged(None, 5.0, 0.9, reference_split="test", reference_fingerprint="t"),
            record(value=1.0, subject="run", n=500, images=500, extractor="dinov2"),
        ]
    )
    found = distance_against_recall([summary_of(folder)], ["run"])
    ours = {re.search(r"digits (\w+)", group[2])[1]: lines for group, lines in found.items()}  # type: ignore[index]
    assert list(ours) == ["test", "train"]
    (line,) = ours["train"]
    assert (line.points, line.notes) == ([(0.3, 9.0), (0.5, 7.0), (0.6, 8.0)], ["0.5", "1", "none"])
    assert ours["test"][0].points == [(0.9, 5.0)]
