"""`cifargan data`: inspect images, download CIFAR-10, pack a folder into a zip."""

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cifargan.cli.options import Parser, completed_by, count
from cifargan.cli.tables import aligned
from cifargan.errors import UserError, did_you_mean
from cifargan.untrusted import readable

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cifargan.data.sources import ImageSet

HELP = """cifargan data inspect [data=... key=value]   counts, class means, colours, duplicates
cifargan data fetch [--root DIR]             download, verify and unpack CIFAR-10
cifargan data pack DIR OUT.zip               a folder as one file for data=folder

examples:
  cifargan data inspect data=cifar10
  cifargan data inspect data=folder data.root=pictures --out look
  cifargan data pack pictures pictures.zip

`cifargan data COMMAND --help` says more.
"""


def run(arguments: list[str]) -> int:
    """Run one of the commands."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if arguments[0] not in COMMANDS:
        hint = did_you_mean(arguments[0], COMMANDS) or f"; choose from {', '.join(COMMANDS)}"
        raise UserError(f"cifargan data {arguments[0]}: no such command{hint}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return COMMANDS[arguments[0]](arguments[1:])


def inspect(arguments: list[str]) -> int:
    """Inspect a data set."""
    p = Parser(
        prog="cifargan data inspect",
        description="Counts, class means, colours, images of low contrast, duplicates: as numbers, PNG files and a page.",
        epilog="train and test are inspected if they exist; data.splits=[train] chooses.",
    )
    words = p.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="which images, as for train: data=folder data.root=DIR"
    )
    completed_by(words, _data_overrides)
    p.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: outputs/data/<name>_<time>)")
    p.add_argument(
        "--per-class", type=count, metavar="N", default=10, help="images of each in the overview (default: 10)"
    )
    p.add_argument(
        "--low-contrast", type=_share, metavar="T", default=0.15, help="as data.drop_low_contrast (default: 0.15)"
    )
    options = p.parse_intermixed_args(arguments)
    if wrong := [override for override in options.overrides if "=" not in override]:
        raise UserError(f"{wrong[0]}: settings are written key=value, such as data=folder data.root={wrong[0]}")
    from cifargan.data.inspect import colour_rows, contrast_rows, count_rows, duplicate_rows
    from cifargan.data.inspect import inspect as inspect_splits
    from cifargan.report.dataset import write_inspection

    splits = _load(options.overrides)
    found = inspect_splits(splits, threshold=options.low_contrast)
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    out = options.out or Path("outputs", "data", f"{splits[0].name}_{stamp}")
    for rows in (count_rows(found), colour_rows(found), contrast_rows(found), duplicate_rows(found)):
        print("\n".join(aligned([[readable(cell, limit=40) for cell in row] for row in rows])) + "\n")
    for split, images in found.splits.items():
        print(f"{readable(split)}: fingerprint {images.fingerprint}")
    for path in write_inspection(found, out, per_class=options.per_class):
        print(readable(str(path)))
    return 0


def _data_overrides(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    from cifargan.cli.completion import overrides

    return [word for word in overrides(prefix, parsed_args) if word.startswith("data")]


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to below 1")
    return value


def _load(overrides: list[str]) -> "list[ImageSet]":
    """Each split by itself: the chosen ones, or train and test if they exist."""
    import hydra
    from omegaconf import OmegaConf

    from cifargan.compose import key_of, reject_null_groups
    from cifargan.config import SPLITS, build_data, splits_of
    from cifargan.schema import conf_dir

    reject_null_groups(overrides)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = hydra.compose("train", overrides)
    node = cast("DictConfig", OmegaConf.create(OmegaConf.to_container(config.data, resolve=True)))
    chosen = any(key_of(override) in ("data.splits", "data") and "splits" in override for override in overrides)
    return splits_of(node, build_data(node), node.splits if chosen else SPLITS)


def fetch(arguments: list[str]) -> int:
    """Download CIFAR-10."""
    p = Parser(prog="cifargan data fetch", description="Download, verify and unpack CIFAR-10 (170 MB).")
    p.add_argument("--root", metavar="DIR", help="folder, as data.root (default: cifar10 in the cache folder)")
    options = p.parse_args(arguments)
    from cifargan.data.cifar10 import CIFAR10

    for split in ("train", "test"):
        source = CIFAR10(root=options.root, splits=[split])
        images = source.load()
        print(f"{split}: {len(images):,} images of {images.num_classes} classes, fingerprint {images.fingerprint}")
    print(readable(str(source.root)))
    return 0


def pack(arguments: list[str]) -> int:
    """Pack a folder."""
    p = Parser(
        prog="cifargan data pack",
        description="Pack a folder of images into a zip. Files are stored unchanged; the same files give the same bytes.",
    )
    p.add_argument("source", type=Path, metavar="DIR", help="a folder of class folders, or train and test with those")
    p.add_argument("out", type=Path, metavar="OUT.zip", help="the zip to write")
    p.add_argument("--force", action="store_true", help="replace an existing zip")
    p.add_argument("--skip-broken", action="store_true", help="leave out images that cannot be decoded")
    options = p.parse_args(arguments)
    from cifargan.data.pack import pack as pack_images
    from cifargan.evaluation.extractors.weights import sha256_of

    packed = pack_images(options.source, options.out, force=options.force, skip_broken=options.skip_broken)
    splits = list(dict.fromkeys(split for split, _ in packed.counts))
    rows = [["class", *(split or "images" for split in splits)]]
    for name in dict.fromkeys(name for _, name in packed.counts):
        counts = [packed.counts.get((split, name), 0) for split in splits]
        rows.append([readable(name, limit=40), *(f"{n:,}" for n in counts)])
    totals = [sum(n for (of, _), n in packed.counts.items() if of == split) for split in splits]
    rows.append(["all", *(f"{n:,}" for n in totals)])
    print("\n".join(aligned(rows)) + "\n")
    if packed.ignored:
        print(f"{packed.ignored:,} files left out: not images, or not in a class folder")
    if packed.broken:
        print(f"{len(packed.broken):,} broken images left out: {readable(', '.join(packed.broken[:5]))}")
    size = options.out.stat().st_size
    print(f"{readable(str(options.out))}: {size:,} bytes, SHA-256 {sha256_of(options.out)}")
    print(f"train on it with: cifargan train data=folder data.root={readable(str(options.out))}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {"inspect": inspect, "fetch": fetch, "pack": pack}
