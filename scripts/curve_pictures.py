#!/usr/bin/env python
"""The pictures of docs/reading_curves.md: what a run logged, and corners of its grids below that.

python scripts/curve_pictures.py RUN OUT.png --steps 250 1000 1500
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from PIL import Image

from cifargan.errors import UserError
from cifargan.files import write_atomically
from cifargan.report.reading import config_of, log_points, number, setting, whole
from cifargan.training.run_directory import RunDirectory

SHARE = "accuracy of D"  # between 0 and 1 in every picture
PANELS = {
    "loss": ("loss/discriminator", "loss/generator"),
    SHARE: ("accuracy/real", "accuracy/fake"),
    "mean logit": ("logit/real", "logit/fake"),
    "gradient norm": ("gradient_norm/discriminator", "gradient_norm/generator"),
}
SHOWN = (6, 3)  # columns and rows of a grid that are shown
PADDING = 2  # pixels between the images of a grid
COLOURS = 128  # of the PNG, which keeps it small


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw one run; the exit code is 2 where it has not what is asked for."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="folder of a run")
    p.add_argument("out", type=Path, help="the PNG")
    p.add_argument("--steps", type=int, nargs="+", required=True, help="the grids to show")
    options = p.parse_args(arguments)
    try:
        draw(RunDirectory(options.run), options.out, steps=options.steps)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")
    return 0


def draw(run: RunDirectory, out: Path, *, steps: Sequence[int]) -> None:
    """Write the picture of a run.

    Args:
        run: a run that has logged.
        out: the PNG; missing folders are made.
        steps: of the grids that are shown.

    Raises:
        UserError: the run has logged no losses, or has no such grid.
    """
    curves = {key: curve(run, key) for keys in PANELS.values() for key in keys}
    if not curves["loss/generator"]:
        raise UserError(f"{run.metrics} holds no losses: give the folder of a run that has logged some")
    corners = [corner(run, step) for step in steps]

    figure = plt.figure(figsize=(9, 3.8), dpi=80, layout="constrained")
    [[upper], [lower]] = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.2, 1))
    for axes, (title, keys) in zip(upper.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        draw_panel(axes, title, {key.split("/")[1]: curves[key] for key in keys})
        if title == SHARE:
            axes.set_ylim(-0.03, 1.03)
    for axes, step, image in zip(lower.subplots(1, len(steps), squeeze=False)[0], steps, corners, strict=True):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(f"samples, step {step:,}", fontsize=9)
        axes.axis("off")
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn)
    plt.close(figure)
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            small, format="PNG", optimize=True
        )
    write_atomically(out, small.getvalue())


def curve(run: RunDirectory, key: str) -> list[tuple[int, float]]:
    """The steps at which a scalar was logged as a finite number, each with that number."""
    found = ((step, number(values.get(key))) for step, values in log_points(run))
    return [(step, value) for step, value in found if value is not None]


def draw_panel(axes: Axes, title: str, curves: dict[str, list[tuple[int, float]]]) -> None:
    """Draw curves into one frame, with a legend."""
    for label, points in curves.items():
        axes.plot([step for step, _ in points], [value for _, value in points], label=label, lw=1)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, frameon=False)


def corner(run: RunDirectory, step: int) -> Image.Image:
    """The first images of the first rows of the grid of one step.

    Raises:
        UserError: there is no such grid, or the run does not say how large its images are.
    """
    size = whole(setting(config_of(run), "data.image_size"))
    if not size:
        raise UserError(f"{run.path} does not say its data.image_size: give the folder of a run")
    path = run.samples / f"step_{step:09d}.png"
    if not path.is_file():
        there = ", ".join(str(int(grid.stem.removeprefix("step_"))) for grid in sorted(run.samples.glob("step_*.png")))
        raise UserError(f"{run.path} has no grid of step {step}; it has: {there or 'none'}")
    with Image.open(path) as grid:
        columns, rows = (PADDING + (size + PADDING) * n for n in SHOWN)
        return grid.convert("RGB").crop((0, 0, min(columns, grid.width), min(rows, grid.height)))


if __name__ == "__main__":
    sys.exit(main())
