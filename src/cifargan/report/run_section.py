"""One run on the page: pictures, losses, scores, where it comes from, how to repeat it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cifargan.report.charts import Line, chart
from cifargan.report.markup import Html, element, join
from cifargan.report.pictures import Picture, Slides
from cifargan.report.reading import text
from cifargan.report.scores import Score
from cifargan.report.summary import RunSummary


@dataclass(frozen=True, kw_only=True)
class RunPart:
    """What the page tells of one run.

    Attributes:
        summary: the run.
        label: what it is called on the page, which no other run is.
        row_names: the class of each row of its grids; empty where there are none.
        image_size: pixels a side of one image; None where not known.
        training: its grids along the steps.
        truncation: its samples along truncation; no pictures where there are none.
        losses: a line a network.
        averaged: log points that one point of a loss is the mean of.
        sessions: its provenance.
    """

    summary: RunSummary
    label: str
    row_names: tuple[str, ...]
    image_size: int | None
    training: Slides
    truncation: Slides
    losses: Sequence[Line]
    averaged: int
    sessions: Sequence[Mapping[str, Any]]


def section(part: RunPart, number: int) -> Html:
    """The article about one run, `number` its own on the page."""
    run, name = part.summary, f"run-{number}"
    note = f"each point the mean of {part.averaged} log points" if part.averaged > 1 else ""
    steps = f"step {run.step:,}" + (f" of {run.steps:,}" if run.steps else "")
    below = [
        chart(part.losses, name=f"{name}-loss", title=f"Losses of {part.label}", x="step", y="loss", note=note),
        _about(part),
    ]
    # Beside a single picture they stand on top of each other, below two side by side.
    beside = below if part.training.pictures and part.truncation.pictures else [element("div", *below)]
    return element(
        "article",
        element(
            "div",
            element("h3", part.label, id=f"{name}-title"),
            element("span", run.status, class_=f"status {run.status}"),
            element("span", steps, class_="soft"),
            class_="run-head",
        ),
        element("p", str(run.path), class_="note"),
        element(
            "div",
            _gallery(part, part.training, f"{name}-steps", "Samples during training", "training step"),
            _gallery(part, part.truncation, f"{name}-truncation", "Samples by truncation", "truncation"),
            *beside,
            class_="run-body",
        ),
        _scores(run, part.label),
        _repeat(run, name),
        class_="run",
        id=name,
        aria_labelledby=f"{name}-title",
    )


def _gallery(part: RunPart, slides: Slides, name: str, title: str, along: str) -> Html:
    if not slides.pictures:
        return Html("")
    last = len(slides.pictures) - 1
    rows = [element("ol", *(element("li", row) for row in part.row_names), aria_hidden="true")]
    by_class = _has_rows(part, slides.pictures[0])
    pictures = [
        element(
            "img",
            src=picture.address,
            alt=f"{title} of {part.label}, {picture.label}" + (", a row for each class" if by_class else ""),
            width=picture.width,
            height=picture.height,
            hidden=i != last,
            data_label=picture.label,
        )
        for i, picture in enumerate(slides.pictures)
    ]
    return element(
        "figure",
        element(
            "figcaption",
            element("strong", title),
            *([element("span", slides.left_out, class_="note")] if slides.left_out else []),
        ),
        _slider(slides, name, along, last) if last else element("p", slides.pictures[0].label, class_="soft"),
        element("div", *(rows if by_class else []), element("div", *pictures, class_="frame"), class_="sheet", id=name),
    )


def _has_rows(part: RunPart, picture: Picture) -> bool:
    """Whether the grid has as many rows as there are classes; one that was made smaller has kept its proportions."""
    size = part.image_size
    if not part.row_names or size is None:
        return False
    per_row = picture.width * (len(part.row_names) * (size + 2) + 2) / picture.height - 2
    columns = per_row / (size + 2)
    return columns >= 1 and abs(columns - round(columns)) < 0.05


def _slider(slides: Slides, name: str, along: str, last: int) -> Html:
    return element(
        "div",
        element("label", along, for_=f"{name}-slider"),
        element(
            "input",
            type="range",
            id=f"{name}-slider",
            min=0,
            max=last,
            value=last,
            step=1,
            autocomplete="off",
            data_pictures=name,
            data_output=f"{name}-output",
        ),
        # The slider itself says its value: said twice, it would only be in the way.
        element("output", slides.pictures[last].label, id=f"{name}-output", for_=f"{name}-slider", aria_live="off"),
        class_="slider",
    )


def _about(part: RunPart) -> Html:
    """Where the run comes from, from the provenance of its newest start."""
    run = part.summary
    newest = part.sessions[-1] if part.sessions else {}
    git, data, versions = (_mapping(newest.get(key)) for key in ("git", "data", "versions"))
    splits = data.get("splits")
    commit = text(git.get("commit"))[:12]
    events = [event for session in part.sessions for event in _listed(session.get("events"))]
    facts = {
        "started": run.started + (f" ({len(part.sessions)} starts)" if len(part.sessions) > 1 else ""),
        "device": run.device,
        "precision": text(newest.get("precision")),
        "images/s": "" if run.images_per_s is None else f"{run.images_per_s:,.0f}",
        "seed": "" if run.seed is None else str(run.seed),
        "data": " ".join([text(data.get("name")), *(text(split) for split in _listed(splits))]),
        "fingerprint": text(data.get("fingerprint")),
        "commit": commit + (", with changes" if commit and git.get("dirty") else ""),
        "versions": ", ".join(f"{text(key)} {text(value)}" for key, value in versions.items()),
        "platform": text(newest.get("platform")),
        "events": f"{len(events)}, see provenance.json" if events else "",
    }
    entries = [join([element("dt", key), element("dd", value)]) for key, value in facts.items() if value.strip()]
    return element("section", element("h4", "Where it comes from"), element("dl", *entries)) if entries else Html("")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _scores(run: RunSummary, label: str) -> Html:
    scores = [*([run.best] if run.best else []), *run.scores]
    if not scores:
        return Html("")
    table = element(
        "table",
        element("caption", f"Scores of {label}"),
        element(
            "thead",
            element("tr", *(element("th", name, scope="col") for name in ("score", "value", "step", "protocol"))),
        ),
        element("tbody", *(_score_row(score) for score in scores)),
        class_="scores",
    )
    return element(
        "details",
        element("summary", f"All scores ({len(scores)})"),
        element("div", table, class_="scroll", tabindex=0, role="region", aria_label=f"scores of {label}"),
    )


def _score_row(score: Score) -> Html:
    return element(
        "tr",
        element("th", score.key, scope="row"),
        element("td", score.shown, class_="number"),
        element("td", "" if score.step is None else f"{score.step:,}", class_="number"),
        element("td", score.protocol),
    )


def _repeat(run: RunSummary, name: str) -> Html:
    """The command that trains the same again, where its overrides are known."""
    if not run.overrides:
        return Html("")
    command = shlex.join(["cifargan", "train", *run.overrides])
    return element(
        "section",
        element("h4", "Run it again"),
        element(
            "div",
            element("pre", element("code", command, id=f"{name}-command")),
            element("button", "Copy", type="button", class_="copy", data_copies=f"{name}-command"),
            class_="command",
        ),
    )
