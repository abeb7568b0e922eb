"""Samples at several truncations: those that `cifargan sample` left, or new ones."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from cifargan.images import grid
from cifargan.loading import LoadedGenerator
from cifargan.report.pictures import Source, open_picture
from cifargan.report.reading import number, text, whole
from cifargan.runs.directory import RunDirectory

PER_CLASS = 10
NONE = math.inf  # no truncation, behind every threshold; no file can say it


def left_behind(run: RunDirectory) -> list[Source]:
    """The sheets of `cifargan sample` that differ in truncation alone; none where there are fewer than two."""
    groups: dict[tuple[Any, ...], dict[float, Path]] = defaultdict(dict)
    for folder in sorted((run.path / "generated").glob("*")):
        card = _card(folder / "samples.json")
        sheets = [*folder.glob("overview.png"), *sorted(folder.glob("GAN_*_Generated_all.png"))]
        if card is None or not sheets:
            continue
        key = (whole(card.get("step")) or 0, *(text(card.get(name)) for name in ("weights", "batch_norm")))
        threshold = number(card.get("truncation"))
        groups[(*key, whole(card.get("seed")), whole(card.get("per_class")))][
            NONE if threshold is None else threshold
        ] = sheets[0]
    if not groups:
        return []
    sheets_of = max(groups.items(), key=lambda group: (len(group[1]), group[0][0]))[1]
    if len(sheets_of) < 2:
        return []
    return [
        Source(label=_label(threshold), read=lambda path=sheets_of[threshold]: open_picture(path))  # type: ignore[misc]
        for threshold in sorted(sheets_of)
    ]


def drawn(generator: LoadedGenerator, thresholds: Sequence[float]) -> Iterator[Source]:
    """New samples, the same latents at each truncation: a row a class, or a square without classes."""
    rows = len(generator.classes) if generator.conditional else PER_CLASS
    for threshold in sorted(thresholds):
        images = generator.sample(rows * PER_CLASS, truncation=threshold, seed=0)
        if generator.conditional:
            # The sampler takes the classes in turn: (n K, ...) -> (n, K, ...) -> (K n, ...), a row a class.
            images = images.view(PER_CLASS, rows, *images.shape[1:]).transpose(0, 1).flatten(0, 1)
        sheet = Image.fromarray(grid(images, columns=PER_CLASS).permute(1, 2, 0).numpy())
        yield Source(label=_label(threshold), read=sheet.copy)


def _label(threshold: float) -> str:
    return "no truncation" if threshold == NONE else f"truncation {threshold:g}"


def _card(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
