"""`cifargan sample`: pictures from a trained generator."""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cifargan.cli.options import Parser, add_generator_options, count, load_chosen, positive, seed
from cifargan.errors import UserError
from cifargan.files import write_atomically, write_json
from cifargan.images import grid, labelled_sheet, save_gif, save_png, upscale
from cifargan.loading import LoadedGenerator, find_generator
from cifargan.runs.directory import RunDirectory
from cifargan.untrusted import readable, refusing, require_no_links_out

log = logging.getLogger(__name__)

FORMATS = ("grid", "png", "npz")


def parser() -> argparse.ArgumentParser:
    """The options of `cifargan sample`."""
    p = Parser(
        prog="cifargan sample",
        usage="cifargan sample [RUN] [options]",
        description="Pictures from a trained generator: GAN_100_Generated_{class}.png for every class, and more.",
        epilog="examples:\n"
        "  cifargan sample --truncation 0.5                     class sheets from the newest run\n"
        "  cifargan sample RUN --classes cat,dog --format npz   arrays of cats and dogs\n"
        "  cifargan sample RUN --interpolate cat,dog            a strip and a GIF from cat to dog",
    )
    add_generator_options(p)
    p.add_argument(
        "--truncation", type=positive, metavar="T", help="resample latent coordinates beyond T (default: none)"
    )
    p.add_argument("--classes", metavar="A,B", help="names, separated by commas (default: all)")
    p.add_argument("--per-class", type=count, metavar="N", default=100, help="images of each class (default: 100)")
    p.add_argument("--seed", type=seed, metavar="N", default=0, help="the same seed gives the same images (default: 0)")
    p.add_argument("--out", type=Path, help="folder to write to (default: RUN/generated/...)")
    p.add_argument("--format", default="grid", help="grid, png, npz or several of them (default: grid)")
    p.add_argument("--scale", type=count, metavar="N", default=1, help="enlarge every pixel of grids and strips")
    p.add_argument("--interpolate", metavar="A,B", help="a strip and a GIF from class A to class B")
    p.add_argument("--training-gif", action="store_true", help="a GIF of the grids that training left behind")
    return p


def run(arguments: list[str]) -> int:
    """Write what the options ask for, and print where it is."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = parser().parse_args(arguments)
    formats = options.format.split(",")
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format {name}: choose from {', '.join(FORMATS)}")
    source, home = find_generator(options.run, Path(options.root))
    if options.out is None:
        require_no_links_out(home)
    if options.training_gif:
        training_gif(RunDirectory(home).samples, options.out or home / "generated")
        return 0
    generator = load_chosen(source, options)
    out = options.out or home / "generated" / label(generator, options)
    if options.interpolate:
        interpolate(generator, options, out)
        return 0
    rows = draw(generator, options)
    writers: dict[str, Callable[..., None]] = {"grid": write_grids, "png": write_files, "npz": write_npz}
    for name in formats:
        writers[name](rows, out, options.scale)
    write_json(out / "samples.json", card(generator, options, list(rows)))
    print(out)
    return 0


def label(generator: LoadedGenerator, options: argparse.Namespace) -> str:
    """A folder name that says what decides the pictures."""
    parts = [f"step_{generator.step}", generator.weights, generator.batch_norm]
    parts += [f"truncation_{options.truncation:g}"] if options.truncation else []
    return "-".join([*parts, f"seed_{options.seed}"])


def card(generator: LoadedGenerator, options: argparse.Namespace, classes: list[str]) -> dict[str, Any]:
    """What is needed to make the pictures again."""
    return {
        "checkpoint": str(generator.checkpoint),
        "step": generator.step,
        "weights": generator.weights,
        "batch_norm": generator.batch_norm,
        "truncation": options.truncation,
        "seed": options.seed,
        "per_class": options.per_class,
        "classes": classes,
    }


def draw(generator: LoadedGenerator, options: argparse.Namespace) -> dict[str, Tensor]:
    """Class name -> (n, 3, H, W) uint8; one row called `all` from an unconditional generator."""
    if not generator.conditional:
        if options.classes:
            raise UserError("--classes: this generator is unconditional, it knows no classes")
        names = ["all"]
    else:
        names = options.classes.split(",") if options.classes else list(generator.classes)
    wanted = names if generator.conditional else None
    images = generator.sampler.sample(
        options.per_class * len(names),
        classes=wanted,
        truncation=options.truncation,
        seed=options.seed,
        progress=sys.stderr.isatty(),
    )
    # The sampler takes the classes in turn.
    return {name: images[i :: len(names)] for i, name in enumerate(names)}


def write_grids(rows: dict[str, Tensor], out: Path, scale: int) -> None:
    """A sheet a class, ten columns wide, and one overview of all classes."""
    for name, images in rows.items():
        save_png(grid(upscale(images, scale), columns=10), out / f"GAN_{len(images)}_Generated_{name}.png")
    if len(rows) > 1:
        save_png(
            labelled_sheet({name: images[:10] for name, images in rows.items()}, scale=scale), out / "overview.png"
        )


def write_files(rows: dict[str, Tensor], out: Path, scale: int) -> None:  # noqa: ARG001 - files keep their size
    """One PNG an image, a folder a class: what `data=folder` reads."""
    for name, images in rows.items():
        for i, image in enumerate(images):
            save_png(image, out / "png" / name / f"{i:05d}.png")


def write_npz(rows: dict[str, Tensor], out: Path, scale: int) -> None:  # noqa: ARG001 - arrays keep their size
    """One compressed archive: images (N, H, W, 3) uint8, labels (N,) int64, classes (K,) str."""
    images = torch.cat(list(rows.values())).permute(0, 2, 3, 1).numpy()
    labels = np.repeat(np.arange(len(rows)), [len(row) for row in rows.values()])
    classes = np.array(list(rows))
    write_atomically(
        out / "samples.npz", lambda file: np.savez_compressed(file, images=images, labels=labels, classes=classes)
    )


def interpolate(generator: LoadedGenerator, options: argparse.Namespace, out: Path) -> None:
    """A strip of eleven frames, four images high, and a GIF of thirty-one there and back."""
    if not generator.conditional:
        ends = ["", ""]
    else:
        ends = options.interpolate.split(",")
        if len(ends) != 2:
            raise UserError(f"--interpolate {options.interpolate}: name two classes, such as cat,dog")
    frames = generator.sampler.interpolate(
        ends[0], ends[1], steps=31, rows=4, truncation=options.truncation, seed=options.seed
    )  # (rows, steps, 3, H, W)
    name = "_to_".join(ends) if generator.conditional else "latents"
    enlarged = upscale(frames, options.scale)
    strip = enlarged[:, ::3]
    save_png(grid(strip.flatten(0, 1), columns=strip.shape[1]), out / f"interpolation_{name}.png")
    there = [grid(frame, columns=frame.shape[0]) for frame in enlarged.transpose(0, 1)]
    save_gif([*there, *reversed(there)], out / f"interpolation_{name}.gif")
    print(out)


def training_gif(samples: Path, out: Path) -> None:
    """The grids from fixed latents, in the order of their steps."""
    files = sorted(samples.glob("step_*.png"))
    if not files:
        raise UserError(f"{samples} has no grids: the run has not reached trainer.sample_every yet")
    frames: list[Tensor] = []
    for file in files:
        with (
            refusing(f"{readable(str(file))} is damaged or not a grid of samples: move it away"),
            Image.open(file, formats=["PNG"]) as image,
        ):
            if frames and image.size != (frames[0].shape[2], frames[0].shape[1]):
                raise ValueError("grids have one size")
            frames.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))  # (H, W, 3) -> (3, H, W)
    save_gif(frames, out / "training.gif", milliseconds=250)
    print(out / "training.gif")
