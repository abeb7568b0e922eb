"""Records as a table for the terminal."""

from collections.abc import Sequence

from cifargan.evaluation.records import Protocol, Record, formatted


def score_table(records: Sequence[Record]) -> str:
    """All scores: what they are of, a row a score and truncation, a column a reference; then a row a class."""
    first = records[0].protocol
    lines = [f"{label:10} {text}" for label, text in _about(first)]
    whole = [record for record in records if record.class_name is None]
    lines += ["", *aligned(_scores(whole))]
    classes = [record for record in records if record.class_name is not None]
    if classes:
        lines += ["", *aligned(_classes(classes))]
    return "\n".join(lines)


def _about(protocol: Protocol) -> list[tuple[str, str]]:
    space, made = protocol.space, [protocol.subject]
    if protocol.step is not None:
        made += [
            f"step {protocol.step:,} ({protocol.checkpoint})",
            f"{protocol.weights} weights",
            f"{protocol.batch_norm} batch-norm statistics",
            f"seed {protocol.seed}",
        ]
    return [
        ("images", ", ".join([*made, f"{protocol.n:,} of them"])),
        ("features", f"{space.extractor}, {space.resize}, {space.dtype}, weights {space.weights_hash[:8]}"),
    ]


def _scores(records: Sequence[Record]) -> list[list[str]]:
    columns = _references(records)
    truncations = list(dict.fromkeys(record.protocol.truncation for record in records))
    several = len(truncations) > 1 or truncations != [None]
    rows = [["truncation"] * several + ["score", "images", *(columns or [""])]]
    for truncation in truncations:
        own = [record for record in records if record.protocol.truncation == truncation]
        for metric, n in dict.fromkeys((record.metric, record.n) for record in own):
            values = {
                _reference(record): formatted(record) for record in own if (record.metric, record.n) == (metric, n)
            }
            # A score that needs no real images stands in the first column.
            cells = [
                values.get(column, values.get("", "") if i == 0 else "") for i, column in enumerate(columns or [""])
            ]
            shown = "none" if truncation is None else f"{truncation:g}"
            rows.append([shown] * several + [metric, f"{n:,}", *cells])
    return rows


def _classes(records: Sequence[Record]) -> list[list[str]]:
    # One table: that of the last pass.
    last = [record for record in records if record.protocol.truncation == records[-1].protocol.truncation]
    columns = list(dict.fromkeys((record.metric, _reference(record)) for record in last))
    rows = [["class", *(" ".join(filter(None, column)) for column in columns)]]
    for name in dict.fromkeys(record.class_name for record in last):
        values = {
            (record.metric, _reference(record)): formatted(record) for record in last if record.class_name == name
        }
        rows.append([str(name), *(values.get(column, "") for column in columns)])
    return rows


def _references(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(_reference(record) for record in records if record.reference))


def _reference(record: Record) -> str:
    if record.reference is None:
        return ""
    if record.reference.split.endswith("minus_train"):
        return "test - train"
    n = f"{record.reference.n:,}" if record.reference.n else "?"
    return f"{record.reference.name} {record.reference.split} ({n})"


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines, every column as wide as its widest cell."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
