"""The page in a real browser: nothing is refused or broken, and everything that moves does."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cifargan.report.page import write_report
from cifargan.report.summary import summary_of

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (in the dev extra)")

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = os.environ.get("CIFARGAN_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
EVIL = "<script>alert(1)</script>"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH or in $CIFARGAN_CHROMIUM"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # Its sandbox cannot be had by root; the only page it opens here is our own file.
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def report(make_run: Callable[..., Path], record: Callable[..., Any], tmp_path: Path) -> Path:
    """A page about four runs, two of which have scores of one protocol."""

    def final(value: float, **changes: Any) -> list[dict[str, Any]]:
        return [record(value=value, n=500, images=500, **changes), record(step=50), record(step=100, value=18.0)]

    runs = [
        make_run(
            "1", records=final(30.0), speed=10.0, config={"name": EVIL}, grids=(50, 100, 150), overrides=("a=b c",)
        ),
        make_run("2", records=final(20.0), speed=90.0, config={"name": "second"}),
        make_run("3", records=final(25.0, dtype="bfloat16"), speed=50.0, config={"name": "third"}),
        make_run("4", status="failed", config={"name": "fourth"}, speed=9.0),
    ]
    out = tmp_path / "report.html"
    settings: dict[str, Any] = {"root": tmp_path / "outputs", "truncations": [], "device": "cpu", "limit": 8_000_000}
    write_report([summary_of(run) for run in runs], out, **settings)
    return out


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The page, opened; whatever the browser complains of, asks for or pops up fails the test."""
    opened = browser.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(f"console: {message.text}"))
    opened.on("pageerror", lambda error: complaints.append(f"error: {error}"))

    def dismiss(dialog: Any) -> None:
        complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    opened.on("dialog", dismiss)
    opened.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
    opened.goto(report.as_uri())
    yield opened
    opened.close()
    assert complaints == []


def order(page: Any) -> list[str]:
    names: list[str] = page.locator("main > .scroll tbody th").all_inner_texts()
    return names


def test_columns_sort_and_say_so(page: Any) -> None:
    assert order(page) == ["second", EVIL, "third", "fourth"]
    score = page.get_by_role("columnheader", name="score")
    assert score.get_attribute("aria-sort") == "ascending"
    score.get_by_role("button").click()
    # The other way round within a protocol; the other protocol and the run without a score stay behind.
    assert order(page) == [EVIL, "second", "third", "fourth"]
    assert score.get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="images/s").press("Enter")
    assert order(page) == ["fourth", EVIL, "third", "second"]
    assert score.get_attribute("aria-sort") is None
    assert page.get_by_role("columnheader", name="images/s").get_attribute("aria-sort") == "ascending"
    assert page.locator("#said").inner_text() == "sorted by images/s, ascending"
    page.get_by_role("button", name="run").click()
    assert order(page) == [EVIL, "fourth", "second", "third"]


def test_the_slider_changes_the_picture(page: Any) -> None:
    slider = page.get_by_role("slider", name="training step")
    picture = page.locator("#run-0-steps img:visible")
    assert picture.get_attribute("alt").endswith("step 150")
    before = picture.screenshot()
    slider.press("ArrowLeft")
    assert picture.count() == 1
    assert picture.get_attribute("alt").endswith("step 100")
    assert picture.evaluate("image => image.complete && image.naturalWidth") == 102
    assert picture.screenshot() != before
    slider.press("Home")
    assert page.locator("output").first.inner_text() == "step 50"
    assert slider.get_attribute("aria-valuetext") == "step 50"


@pytest.mark.parametrize(
    "hidden", ["{}", "Object.defineProperty(navigator, 'clipboard', {configurable: true, value: null})"]
)
def test_a_command_is_copied_as_it_stands(page: Any, hidden: str) -> None:
    """Also where the page is no secure context, which has no clipboard to write to."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("navigator.clipboard.writeText('nothing')")
    page.evaluate(hidden)
    page.get_by_role("button", name="Copy").first.click()
    sync_api.expect(page.locator("#said")).to_have_text("copied")
    page.evaluate("delete navigator.clipboard")
    assert page.evaluate("navigator.clipboard.readText()") == "cifargan train 'a=b c'"


def test_names_are_text(page: Any) -> None:
    assert page.locator("h3").first.inner_text() == EVIL
    assert page.locator("script").count() == 1


def test_the_policy_refuses_what_is_put_in(browser: Any, report: Path) -> None:
    """Should escaping ever fail, nothing runs and nothing is fetched all the same."""
    opened = browser.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    hole = "<script>document.title = 'run'</script><img src='https://localhost:1/x.png' onerror='document.title=1'>"
    report.write_text(report.read_text().replace("<main>", f"<main>{hole}"))
    opened.goto(report.as_uri())
    assert opened.title() == "cifargan: 4 runs"
    assert sum("Content Security Policy" in line for line in said) >= 2
    opened.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light")])
def test_it_fits_and_can_be_read(browser: Any, report: Path, width: int, scheme: str) -> None:
    opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    opened.goto(report.as_uri())
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = opened.evaluate(CONTRAST)
    assert len(contrasts) > 20
    assert min(contrasts) >= 4.5
    opened.close()


# The contrast ratio of WCAG 2 between each text and the page behind it.
CONTRAST = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  const luminance = (colour) => channels(colour).reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    while (element) {
      const colour = getComputedStyle(element).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
      element = element.parentElement;
    }
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || element.closest("svg, script, [hidden]")) continue;
    const pair = [luminance(getComputedStyle(element).color), luminance(behind(element))].sort((a, b) => b - a);
    found.push((pair[0] + 0.05) / (pair[1] + 0.05));
  }
  return found;
}"""


def test_on_paper_there_are_no_controls(browser: Any, report: Path) -> None:
    opened = browser.new_page(color_scheme="dark")
    opened.goto(report.as_uri())
    opened.emulate_media(media="print", color_scheme="dark")
    assert opened.locator(".copy:visible, input:visible, details:visible").count() == 0
    assert opened.locator("#run-0-steps img:visible").count() == 1
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.pdf().startswith(b"%PDF")
    opened.close()
