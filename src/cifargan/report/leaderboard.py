"""The page's table of runs: scores of one protocol together, each with the letter of its protocol."""

from collections.abc import Sequence

from cifargan.report.footnotes import Footnotes
from cifargan.report.markup import Html, element, join
from cifargan.report.selection import ago
from cifargan.report.summary import RunSummary

COLUMNS = ("run", "status", "score", "at step", "trained", "images/s", "device", "seed", "last active")
NUMBERS = ("score", "at step", "trained", "images/s", "seed", "last active")


def leaderboard(runs: Sequence[RunSummary], labels: Sequence[str]) -> Html:
    """The table and its footnotes; `labels` are what the runs are called, in the same order."""
    footnotes = Footnotes(run.headline for run in runs if run.headline)
    order = sorted(range(len(runs)), key=lambda i: footnotes.order(runs[i].headline))
    head = [
        element(
            "th",
            element("button", name, type="button"),
            scope="col",
            class_="number" if name in NUMBERS else None,
            aria_sort="ascending" if name == "score" and footnotes.letters else None,
        )
        for name in COLUMNS
    ]
    several = ": scores with different letters have different protocols and are not ranked against each other"
    scored = "Lower scores are better" + (several if len(footnotes.letters) > 1 else "") + ". "
    note = f"{scored if footnotes.letters else ''}A column's name sorts by it."
    table = element(
        "table",
        element("caption", "Runs and their scores", class_="hidden-text"),
        element("thead", element("tr", *head)),
        element("tbody", *(_row(runs[i], labels[i], i, footnotes) for i in order)),
    )
    lines = [
        element("li", element("strong", letter), " ", text, id=f"protocol-{letter}")
        for letter, text in footnotes.lines()
    ]
    return join(
        [
            element("p", note, class_="soft"),
            element("div", table, class_="scroll", tabindex=0, role="region", aria_label="leaderboard"),
            element("ul", *lines, class_="protocols") if lines else Html(""),
        ]
    )


def _row(run: RunSummary, label: str, number: int, footnotes: Footnotes) -> Html:
    score = run.headline
    value: list[str] = ["none"]
    if score:
        letter = footnotes.of(score)
        link = element("a", letter, href=f"#protocol-{letter}", aria_label=f"protocol {letter}")
        value = [score.shown, element("sup", link)]
    trained = f"{run.step:,}" + (f" of {run.steps:,}" if run.steps else "")
    speed = "" if run.images_per_s is None else f"{run.images_per_s:,.0f}"
    return element(
        "tr",
        element("th", element("a", label, href=f"#run-{number}"), scope="row"),
        element("td", element("span", run.status, class_=f"status {run.status}")),
        _number(*value, sort=score.value if score else None, group=footnotes.order(score)[0]),
        _number("" if not score or score.step is None else f"{score.step:,}", sort=score.step if score else None),
        _number(trained, sort=run.step),
        _number(speed, sort=run.images_per_s),
        element("td", run.device, class_="device"),
        _number("" if run.seed is None else str(run.seed), sort=run.seed),
        _number(f"{ago(run.age())} ago" if run.last_activity else "", sort=run.age() if run.last_activity else None),
    )


def _number(*shown: str, sort: float | None, group: float = 0.0) -> Html:
    # Infinite is the group of those without a score.
    at = 1_000_000 if group == float("inf") else int(group)
    return element(
        "td", *shown, class_="number", data_sort="" if sort is None else repr(float(sort)), data_group=at or None
    )
