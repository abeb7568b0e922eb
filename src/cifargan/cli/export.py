"""`cifargan export`: write a trained generator into one file that other programs read."""

import argparse
import hashlib
import logging
import sys
from pathlib import Path

from cifargan.cli.options import Parser, positive
from cifargan.errors import UserError
from cifargan.files import write_atomically, write_json
from cifargan.untrusted import require_no_links_out

log = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    """The options of `cifargan export`."""
    p = Parser(
        prog="cifargan export",
        usage="cifargan export [RUN] --format FORMAT [options]",
        description="Write a trained generator into FILE, and its description, the card, into FILE.json.\n"
        "  safetensors    weights, for cifargan sample, cifargan train init= and load_generator\n"
        "  onnx           z (N, Z) and y (N,) to images (N, 3, H, W), for onnxruntime and others\n"
        "  torch-export   the same as a .pt2 program, which needs only torch",
        epilog="examples:\n"
        "  cifargan export --format safetensors                      the newest run\n"
        "  cifargan export RUN --format onnx --checkpoint best       for onnxruntime\n"
        "  cifargan sample generator.safetensors --per-class 10      pictures from the file",
    )
    p.add_argument("run", nargs="?", metavar="RUN", help="folder of the run; default: the newest under --root")
    p.add_argument(
        "--format", choices=("safetensors", "onnx", "torch-export"), default="safetensors", help="default: safetensors"
    )
    p.add_argument("--root", default="outputs", help="folder that holds the runs (default: outputs)")
    p.add_argument("--checkpoint", metavar="WHICH", default="last", help="last, best or a step (default: last)")
    p.add_argument("--weights", choices=("ema", "raw"), default="ema", help="the average or the raw weights")
    p.add_argument(
        "--truncation",
        type=_threshold,
        metavar="T",
        default=1.0,
        help="threshold that batch-norm statistics are computed for, or none (default: 1)",
    )
    p.add_argument("--out", type=Path, metavar="PATH", help="the file (default: RUN/export/generator.*)")
    p.add_argument("--device", default="auto", help="where statistics are computed: auto, cuda, mps or cpu")
    return p


def _threshold(text: str) -> float | None:
    return None if text == "none" else positive(text)


def run(arguments: list[str]) -> int:
    """Write the file and its card, and print where they are."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = parser().parse_args(arguments)
    # torch takes seconds to import, which neither --help nor completion need.
    from cifargan.device import select_device
    from cifargan.export.card import make_card
    from cifargan.export.formats import FORMATS
    from cifargan.export.network import plain_generator
    from cifargan.loading import trained_generator
    from cifargan.runs.directory import find_run

    form = FORMATS[options.format]
    form.require()
    directory = find_run(options.run, Path(options.root))
    if options.out is None:
        require_no_links_out(directory.path)
    out = options.out or directory.path / "export" / f"generator{form.suffix}"
    if out.suffix != form.suffix:
        raise UserError(f"--out {out}: a file of --format {options.format} is called {out.stem}{form.suffix}")
    device = select_device(options.device)
    trained = trained_generator(directory.path, checkpoint=options.checkpoint, weights=options.weights)
    plain = plain_generator(trained.generator, truncation=options.truncation, device=device)
    if not all(bool(tensor.isfinite().all()) for tensor in plain.tensors.values()):
        raise UserError(f"{trained.path} has diverged: it holds NaN or infinite weights; use an earlier checkpoint")
    card = make_card(trained, plain, directory)
    content = form.content(plain, card)
    write_atomically(out, content)
    card_file = out.with_name(f"{out.name}.json")
    write_json(card_file, {**card, "file": out.name, "file_sha256": hashlib.sha256(content).hexdigest()})
    megabytes = len(content) / 1e6
    log.info("step %d, %s weights, %.1f MB; card: %s", trained.about.step, trained.weights, megabytes, card_file)
    print(out)
    return 0
