"""Pictures of scores."""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cifargan.evaluation.extractors.interface import FeatureExtractor
from cifargan.evaluation.records import Record
from cifargan.files import write_atomically
from cifargan.registry import METRICS


def plot_truncation(records: Sequence[Record], extractor: FeatureExtractor, path: Path) -> Path:
    """Distance against Inception Score (or recall), and precision against recall, a point a truncation.

    Args:
        records: of several truncations.
        extractor: what the scores are called by.
        path: the PNG to write.

    Returns:
        `path`.

    Raises:
        UserError: the file cannot be written.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    against = "is" if extractor.has_logits else "recall"
    pairs = [
        tuple(METRICS[key].recorded(key, extractor.suffix) for key in keys)
        for keys in ((against, "fid"), ("recall", "precision"))
    ]
    for axes, (x, y) in zip(figure.subplots(1, 2), pairs, strict=True):
        _curve(axes, records, x, y)
    protocol = records[0].protocol
    figure.suptitle(
        f"{protocol.n:,} samples, step {protocol.step:,}, {protocol.weights} weights, {protocol.batch_norm} statistics",
        fontsize="medium",
    )
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=120)
    write_atomically(path, encoded.getvalue())
    return path


def _curve(axes: Axes, records: Sequence[Record], x: str, y: str) -> None:
    """One metric against another, against the first reference that the records name."""
    truncations = list(dict.fromkeys(record.protocol.truncation for record in records))
    points = []
    for truncation in truncations:
        values: dict[str, Record] = {}
        for record in records:
            if record.protocol.truncation == truncation and record.class_name is None:
                values.setdefault(record.metric, record)
        if x in values and y in values:
            points.append((values[x].value, values[y].value, "none" if truncation is None else f"{truncation:g}"))
            reference = values[y].reference
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, alpha=0.3)
    if not points:
        return
    axes.plot([point[0] for point in points], [point[1] for point in points], marker="o")
    for at_x, at_y, label in points:
        axes.annotate(label, (at_x, at_y), textcoords="offset points", xytext=(5, 5))
    if reference is not None:
        axes.set_title(f"against {reference.name} {reference.split}", fontsize="small")
