"""The page as a file: what is in it, what cannot get into it, how large it may be."""

import base64
import hashlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cifargan.errors import UserError
from cifargan.report.page import write_report
from cifargan.report.summary import summary_of

EVIL = "\"'>--></title></style></textarea></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'<!--"


class Reader(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self.open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = tag
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open in self.inside:
            self.inside[self.open][-1] += data
        else:
            self.text += data


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def write(folders: list[Path], out: Path, **settings: Any) -> list[str]:
    defaults: dict[str, Any] = {"root": out.parent / "outputs", "truncations": [], "device": "cpu", "limit": 8_000_000}
    return write_report([summary_of(folder) for folder in folders], out, **{**defaults, **settings})


@pytest.fixture
def hostile(make_run: Callable[..., Path], record: Callable[..., Any], tmp_path: Path) -> Path:
    """A page about a run whose every text is an attack."""
    texts = (
        "metric",
        "extractor",
        "weights_hash",
        "resize",
        "dtype",
        "batch_norm",
        "reference_name",
        "reference_split",
    )
    evil = dict.fromkeys((*texts, "reference_fingerprint", "weights", "spread_over", "checkpoint"), EVIL)
    distances = [record(**{**evil, "metric": f"fid{EVIL}", "step": step}) for step in (1, 2)]
    final = [record(**{**evil, "metric": metric + EVIL, "subject": EVIL}) for metric in ("fid", "recall")]
    name = EVIL.replace("/", "")
    folder = make_run(
        name,
        records=[*distances, *final],
        config={"name": EVIL},
        device=EVIL,
        started=EVIL,
        overrides=(f"a={EVIL}", EVIL),
        grids=(1, 2),
    )
    make_run("harmless", grids=(1,))
    provenance = folder / "provenance.json"
    provenance.write_text(provenance.read_text().replace("0123456789abcdef", "<b>x</b>").replace("2.15.0", "<i>"))
    write([folder, folder.parent / "harmless"], tmp_path / "page.html")
    return tmp_path / "page.html"


def test_no_name_gets_out_of_its_place(hostile: Path) -> None:
    page = read(hostile)
    assert len(page.inside["script"]) == len(page.inside["style"]) == 1
    assert "alert(1)" not in page.inside["script"][0]
    names = {tag for tag, _ in page.tags}
    assert not names & {"iframe", "object", "link", "base", "form", "textarea", "b", "i"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for name in ("src", "href"):
            address = attributes.get(name)
            assert address is None or address.startswith(("#", "data:image/webp;base64,")), address
    assert page.text.count("<script>alert(1)</script>") > 10
    assert "http" not in hostile.read_text(encoding="utf-8").replace("http-equiv", "")


def test_the_policy_lets_in_this_script_and_nothing_else(hostile: Path) -> None:
    page = read(hostile)
    (policy,) = [found["content"] for _, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.inside[kind][0].encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"


def test_what_a_reader_of_the_page_finds(
    make_run: Callable[..., Path], record: Callable[..., Any], tmp_path: Path
) -> None:
    records = [record(value=12.345, n=500, images=500), record(step=50), record(step=100)]
    one = make_run("one", records=records, grids=(50, 100), overrides=("experiment=biggan", "data.splits=[train]"))
    other = make_run("other", config={"name": "dcgan"})
    assert write([one, other], tmp_path / "r.html") == []
    page = read(tmp_path / "r.html")
    for text in (
        "12.35",
        "0123456789ab, with changes",
        "torch 2.15.0",
        "cd0f4874",
        "against digits train",
        "fid during training",
    ):
        assert text in page.text
    assert "cifargan train experiment=biggan 'data.splits=[train]'" in page.text
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [picture["alt"] for picture in pictures] == [
        f"Samples during training of biggan, step {step}" for step in (50, 100)
    ]
    assert ["hidden" in picture for picture in pictures] == [True, False]
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in page.tags:
        for name in ("for", "aria-labelledby", "aria-describedby", "data-pictures", "data-output", "data-copies"):
            assert attributes.get(name) is None or attributes[name] in identifiers
        if (attributes.get("href") or "").startswith("#"):
            assert str(attributes["href"])[1:] in identifiers


def test_runs_of_one_name_are_told_apart_by_their_paths(make_run: Callable[..., Path], tmp_path: Path) -> None:
    write([make_run("x/1"), make_run("x/2")], tmp_path / "r.html")
    headings = read(tmp_path / "r.html").text
    assert "x/1" in headings
    assert "x/2" in headings


def test_a_page_has_a_largest_size(make_run: Callable[..., Path], tmp_path: Path) -> None:
    runs = [make_run(str(i), grids=(1, 2, 3)) for i in range(2)]
    with pytest.raises(UserError, match=r"the page would have 0\.\d MB, more than 0.01: take fewer runs"):
        write(runs, tmp_path / "r.html", limit=10_000)
    assert not (tmp_path / "r.html").exists()


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to report"):
        write([], tmp_path / "r.html")


def test_a_run_without_a_checkpoint_is_not_sampled(make_run: Callable[..., Path], tmp_path: Path) -> None:
    (line,) = write([make_run()], tmp_path / "r.html", truncations=[0.5])
    assert line.startswith("biggan: no samples by truncation (")
    assert "truncation-slider" not in (tmp_path / "r.html").read_text(encoding="utf-8")
