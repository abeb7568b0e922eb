"""Inspections in numbers and short lines."""

from collections import Counter

from cifargan.data.inspection.inspect import Inspection


def count_rows(found: Inspection) -> list[list[str]]:
    """Images a class and split, with a head and a last row of sums."""
    splits = list(found.splits)
    rows = [["class", *splits]]
    for label, name in enumerate(found.classes):
        rows.append([name, *(f"{int(found.counts[split][label]):,}" for split in splits)])
    return [*rows, ["all", *(f"{len(found.splits[split]):,}" for split in splits)]]


def colour_rows(found: Inspection) -> list[list[str]]:
    """The mean level of each colour a class, all splits together."""
    rows = [["class", "red", "green", "blue"]]
    for name, counts in zip(found.classes, found.histograms.double(), strict=True):
        levels = counts @ counts.new_tensor(range(counts.shape[-1])) / counts.sum(dim=1).clamp(min=1)
        rows.append([name, *(f"{float(level):.1f}" for level in levels)])
    return rows


def contrast_rows(found: Inspection) -> list[list[str]]:
    """How many images lie below usual thresholds, and below the one that was asked for."""
    thresholds = sorted({0.05, 0.1, 0.15, found.threshold})
    rows = [["contrast below", *found.splits]]
    rows += [
        [f"{threshold:g}", *(f"{int((found.contrast[split] < threshold).sum()):,}" for split in found.splits)]
        for threshold in thresholds
    ]
    return rows


def duplicate_rows(found: Inspection) -> list[list[str]]:
    """Equal and nearly equal images, by where they lie and whether they have one label."""
    names = list(found.splits)
    places = [f"within {name}" for name in names]
    places += [f"{a} and {b}" for i, a in enumerate(names) for b in names[i + 1 :]]
    equal: Counter[str] = Counter()
    near: Counter[str] = Counter()
    odd: Counter[str] = Counter()
    for group in found.duplicates.equal:
        for second in group[1:]:
            place = where(found, group[0], second)
            equal[place] += 1
            odd[place] += found.label(group[0]) != found.label(second)
    for pair in found.duplicates.near:
        place = where(found, pair.first, pair.second)
        near[place] += 1
        odd[place] += found.label(pair.first) != found.label(pair.second)
    rows = [["duplicates", "equal", "nearly equal", "of them with two labels"]]
    more = "" if found.duplicates.complete else " or more"
    return rows + [[place, f"{equal[place]:,}", f"{near[place]:,}{more}", f"{odd[place]:,}"] for place in places]


def where(found: Inspection, first: int, second: int) -> str:
    """`within train`, or `train and test`."""
    a, b = found.place(first)[0], found.place(second)[0]
    return f"within {a}" if a == b else f"{a} and {b}"
