"""The page of `cifargan runs report`: what a reader finds, what cannot get into it, pictures, curves."""

import base64
import io
import json
import math
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifargan.errors import UserError
from cifargan.report import report
from cifargan.report.report import write_report
from cifargan.runs.read import summary_of

MakeRun = Callable[..., Path]
Line = Callable[..., dict[str, Any]]

EVIL = (
    "\"'>--></title></style></textarea></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'<!--{{ 7*7 }}"
)


class Page(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self, kind: str = "webp") -> list[dict[str, str | None]]:
        return [found for tag, found in self.tags if tag == "img" and f"image/{kind};" in str(found["src"])]

    def charts(self) -> list[str]:
        """What the charts are of, by their alternative texts."""
        return [str(found["alt"]).split(":")[0] for found in self.pictures("svg+xml")]


def write(folders: list[Path], out: Path) -> Page:
    write_report([summary_of(folder) for folder in folders], out, root=out.parent / "outputs")
    return Page(out)


def noise(size: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def test_no_text_of_a_file_becomes_markup(make_run: MakeRun, record: Line, tmp_path: Path) -> None:
    keys = ("extractor", "weights_hash", "resize", "dtype", "batch_norm", "reference_name", "reference_split")
    evil = dict.fromkeys((*keys, "reference_fingerprint", "weights", "spread_over", "checkpoint"), EVIL)
    in_training = [record(**{**evil, "metric": f"fid{EVIL}", "step": step}) for step in (1, 2)]
    final = [record(**{**evil, "metric": metric + EVIL, "subject": EVIL}) for metric in ("fid", "recall")]
    final.append(record(**{**evil, "metric": EVIL, "subject": EVIL, "class_name": EVIL}))
    folder = make_run(
        EVIL.replace("/", ""),
        records=[*in_training, *final],
        config={"name": EVIL, EVIL: {EVIL: EVIL}},
        device=EVIL,
        started=EVIL,
        overrides=(f"a={EVIL}", EVIL),
        grids=(1, 2),
        classes=tuple(f"{i}{EVIL}" for i in range(10)),
    )
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, f"loss/{EVIL}": 1.0}) + "\n")
    provenance = folder / "provenance.json"
    provenance.write_text(provenance.read_text().replace("0123456789abcdef", "<b>x</b>").replace("2.15.0", "<i>"))
    page = write([folder, make_run("harmless", grids=(1,))], tmp_path / "page.html")
    assert not {tag for tag, _ in page.tags} & {
        "script",
        "iframe",
        "object",
        "link",
        "base",
        "form",
        "textarea",
        "b",
        "i",
    }
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for name in ("src", "href"):
            address = attributes.get(name)
            assert address is None or address.startswith(("#", "data:image/")), address
    assert page.text.count("<script>alert(1)</script>") > 20
    assert "{{ 7*7 }}" in page.text
    assert "http" not in page.source.replace("http-equiv", "")
    # Should escaping ever fail, the policy still allows no script and no address.
    (policy,) = [
        str(found["content"]) for _, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    assert not any(name.startswith("script") for name in rules)
    for picture in page.pictures("svg+xml"):
        assert b"alert" not in base64.b64decode(str(picture["src"]).partition(",")[2])


def test_what_a_reader_finds(make_run: MakeRun, record: Line, tmp_path: Path) -> None:
    records = [
        *(record(value=12.345, n=500, images=500), record(step=50), record(step=100)),
        record(value=77.5, n=50, images=500, class_name="cat"),
    ]
    overrides = ("experiment=biggan", "data.splits=[train]")
    one = make_run("one", records=records, grids=(50, 100), overrides=overrides, classes=tuple("abcdefghij"))
    other = make_run("other", config={"name": "dcgan"}, status="failed")
    page = write([one, other], tmp_path / "r.html")
    for text in (
        *("12.35", "against digits train", "failed", "77.50", "cat"),
        *("0123456789ab, with uncommitted changes", "torch 2.15.0", "cd0f4874", "cpu (x86_64)"),
        *("optimizer.generator.lr", "0.0002", "Settings in which the runs differ (1)"),
        "cifargan train experiment=biggan 'data.splits=[train]'",
    ):
        assert text in page.text, text
    assert page.source.count("<ol><li>a</li><li>b</li>") == 1  # the classes of the rows, beside one grid
    assert page.charts() == ["fid in training", "Losses", "Losses"]
    assert [str(found["alt"]).rsplit(", ", 1)[1] for found in page.pictures()] == ["step 100", "step 50"]
    identifiers = [found["id"] for _, found in page.tags if "id" in found]
    assert len(identifiers) == len(set(identifiers))
    links = [str(found["href"]) for tag, found in page.tags if tag == "a"]
    assert links
    assert all(link.removeprefix("#") in identifiers for link in links)


def test_rows_without_classes_have_no_names(make_run: MakeRun, tmp_path: Path) -> None:
    assert "<ol>" not in write([make_run("a", grids=(1,))], tmp_path / "r.html").source
    many = make_run("b", grids=(1,), classes=tuple(map(str, range(100))))  # names would be too small to read
    assert "<ol>" not in write([many], tmp_path / "r.html").source


def test_runs_of_one_name_are_called_by_their_paths(make_run: MakeRun, tmp_path: Path) -> None:
    page = write([make_run("x/1"), make_run("x/2")], tmp_path / "r.html")
    assert "<h3>x/1</h3>" in page.source
    assert "<h3>x/2</h3>" in page.source


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to report"):
        write([], tmp_path / "r.html")


def test_damaged_files_cost_their_part_of_the_page(make_run: MakeRun, record: Line, tmp_path: Path) -> None:
    folder = make_run(records=[record()], grids=(1, 2))
    for name in ("evaluation.json", "metrics.jsonl", "provenance.json", ".hydra/config.yaml"):
        (folder / name).write_bytes(b"\xff[{")
    (folder / "samples" / "step_000000002.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    page = write([folder], tmp_path / "r.html")
    assert "1 pictures cannot be read" in page.text
    assert len(page.pictures()) == 1
    assert page.charts() == []


def test_pictures_are_few_evenly_spread_and_in_order(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run(grids=tuple(range(0, 1001, 50)))
    Image.new("RGB", (8, 8)).save(folder / "samples" / "step_1000000000.png")
    labels = [str(found["alt"]).rsplit(", ", 1)[1] for found in write([folder], tmp_path / "r.html").pictures()]
    assert labels[0] == "step 1,000,000,000"
    assert labels[-1] == "step 0"
    assert len(labels) == report.PER_RUN


@pytest.mark.parametrize("kind", ["GIF", "too large"])
def test_only_png_of_a_sane_size_is_read(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = make_run(grids=(1,))
    noise(8).save(folder / "samples" / "step_2.png", format="GIF" if kind == "GIF" else "PNG")
    monkeypatch.setattr(report, "MAX_PIXELS", 102**2 if kind == "GIF" else 64)
    page = write([folder], tmp_path / "r.html")
    assert "1 pictures cannot be read" in page.text
    assert len(page.pictures()) == 1


def test_pictures_are_encoded_again(make_run: MakeRun, tmp_path: Path) -> None:
    """So no other bytes of an untrusted file, such as a text after its end, get into the page."""
    folder = make_run(grids=(7,))
    file = folder / "samples" / "step_000000007.png"
    file.write_bytes(file.read_bytes() + b"<script>alert(1)</script>")
    (picture,) = write([folder], tmp_path / "r.html").pictures()
    content = base64.b64decode(str(picture["src"]).partition(",")[2])
    assert b"script" not in content
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.size) == ("WEBP", (102, 102))
        assert np.abs(np.asarray(image, dtype=int) - 7).max() <= 2


def test_sheets_of_cifargan_sample_are_shown_by_truncation(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run()
    for name, card in (
        ("one", json.dumps({"step": 200, "weights": "ema", "truncation": 0.5})),
        ("two", json.dumps({"step": 200, "weights": "ema", "truncation": None})),
        ("three", json.dumps({"step": "x", "weights": 3, "truncation": 0.3})),
        ("empty", "["),
    ):
        place = folder / "generated" / name
        place.mkdir(parents=True)
        (place / "samples.json").write_text(card)
        if name != "empty":
            noise(16).save(place / "overview.png")
    shown = [str(found["alt"]).partition(", ")[2] for found in write([folder], tmp_path / "r.html").pictures()]
    assert shown == ["no truncation, step 200, ema", "truncation 0.5, step 200, ema", "truncation 0.3"]


def test_losses_are_thinned_and_unused_terms_left_out(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run()
    lines: list[dict[str, Any]] = [{"step": i, "loss/d": i, "loss/unused": 0.0} for i in range(1, 401)]
    lines[0]["loss/d"] = math.nan
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 401, "lo')
    page = write([folder], tmp_path / "r.html")
    assert "each point is the mean of 2 log points" in page.text
    assert "unused" not in page.text
    assert '<td class="number">3</td><td class="number">2.5</td>' in page.source


def test_scores_of_one_protocol_make_a_chart(make_run: MakeRun, record: Line, tmp_path: Path) -> None:
    one = make_run("one", records=[record(step=i, metric=metric) for i in (1, 2) for metric in ("recall", "fid")])
    other = make_run(
        "other",
        config={"name": "other"},
        records=[record(step=1), *(record(step=i, dtype="bfloat16") for i in (2, 3))],
    )
    page = write([one, other], tmp_path / "r.html")
    assert page.charts()[:3] == ["fid in training", "fid in training", "recall in training"]


def test_distance_against_recall_has_a_point_for_each_truncation(
    make_run: MakeRun, record: Line, tmp_path: Path
) -> None:
    def judged(truncation: float | None, fid: float, recall: float, **more: Any) -> list[dict[str, Any]]:
        common = {"truncation": truncation, "subject": "run", "images": 500, **more}
        return [record(value=fid, n=500, **common), record(value=recall, metric="recall", n=100, **common)]

    folder = make_run(
        records=[
            *judged(None, 8.0, 0.6),
            *judged(0.5, 9.0, 0.3),
            *judged(1.0, 7.0, 0.5),
            # Other reference images, and a distance in other features: neither belongs to the curve.
            *judged(None, 5.0, 0.9, reference_split="test", reference_fingerprint="t"),
            record(value=1.0, subject="run", n=500, images=500, extractor="dinov2"),
        ]
    )
    page = write([folder], tmp_path / "r.html")
    assert page.charts()[:2] == ["fid against recall by truncation"] * 2
    rows = [
        f'biggan ({note})</th><td class="number">{x}</td><td class="number">{y}'
        for note, x, y in (("0.5", 0.3, 9), ("1", 0.5, 7), ("none", 0.6, 8))
    ]
    places = [page.source.index(row) for row in rows]
    assert places == sorted(places)
    assert 'biggan (none)</th><td class="number">0.9</td><td class="number">5<' in page.source
