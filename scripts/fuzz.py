"""Throws damaged and hostile files, settings and overrides at their readers, and sees that each is refused in one line.

    python scripts/fuzz.py --seconds 60
    python scripts/fuzz.py --cases 1000 --part npz --seed 7
    python scripts/fuzz.py --cases 5000 --guided

A case is a seed: a good input, changed by a few operations that each have a seed of their own. With --guided it is what
atheris makes of a good input, guided by the code that it reaches (pip install -e '.[fuzz]'). A case must work, or end in
an error that the command line explains in one line. Anything else, a hang or a hunger for memory is a finding: it is
told with the smallest set of operations that still shows it, and kept as a file.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from fuzzing import guided
from fuzzing.judge import fuzz
from fuzzing.parts import Inputs

PARTS = ("configs", "overrides", "checkpoints", "images", "npz")


def again(file: Path, folder: Path) -> None:
    """One finding again, with its traceback."""
    finding = json.loads(file.read_text())
    if "target" in finding:
        reader, _ = guided.read(finding["target"], folder)
        reader(bytes.fromhex(finding["bytes"]))
        return
    inputs = Inputs(folder)
    inputs.prepare([finding["part"]])
    inputs.parts()[finding["part"]].make(finding["seeds"])


def tallies(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, int, int, int, list[str]]]:
    """What came of each part or reader: its name, cases, refused, worked, findings."""
    chosen = options.part or (guided.TARGETS if options.guided else PARTS)
    out = options.out.absolute()
    seconds = options.seconds / len(chosen)
    if options.guided:
        for name in chosen:
            found = guided.run(name, seed=options.seed, cases=options.cases, seconds=seconds, out=out)
            yield name, found["cases"], found["refused"], found["worked"], found["findings"]  # type: ignore[misc]
        return
    inputs = Inputs(folder)
    inputs.prepare(chosen)
    for name in chosen:
        until = time.monotonic() + seconds
        tally = fuzz(name, inputs.parts()[name], seed=options.seed, cases=options.cases, until=until, out=out)
        yield name, tally.cases, tally.refused, tally.worked, tally.findings


def main() -> int:
    """Fuzz, and print a table; 1 if there is a finding."""
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--seconds", type=float, default=float("inf"), help="in all, shared evenly by the parts")
    p.add_argument("--cases", type=int, default=sys.maxsize, help="of each part")
    p.add_argument("--guided", action="store_true", help="let atheris choose the changes, for readers of bytes")
    p.add_argument("--part", choices=(*PARTS, *guided.TARGETS), action="append", help="default: all")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--out", type=Path, default=Path("fuzz_findings"), help="folder for findings (default: fuzz_findings)"
    )
    p.add_argument("--again", type=Path, metavar="FILE", help="one finding again, with its traceback")
    options = p.parse_args()
    if options.seconds == float("inf") and options.cases == sys.maxsize and not options.again:
        p.error("say how long: --seconds or --cases")
    if options.part and not set(options.part) <= set(guided.TARGETS if options.guided else PARTS):
        p.error("--part: some parts are for --guided, the others are not")
    if options.guided and not guided.available():
        p.error("--guided needs atheris: pip install -e '.[fuzz]', on Linux with Python 3.11 to 3.14")
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    findings = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["CIFARGAN_CACHE"] = f"{folder}/cache"
        if options.again:
            again(options.again, folder)
            print("it works")
            return 0
        print(f"{'part':18} {'cases':>8} {'refused':>8} {'worked':>8} {'findings':>8} {'seconds':>8}")
        start = time.monotonic()
        for part, *counts, found in tallies(options, folder):
            seconds, start = round(time.monotonic() - start), time.monotonic()
            print(f"{part:18} " + " ".join(f"{count:8,}" for count in (*counts, len(found), seconds)), flush=True)
            for text in dict.fromkeys(found):
                print(f"    {text.encode('unicode_escape', 'surrogatepass').decode()}", flush=True)
            findings += len(found)
    if findings:
        print(f"findings: {options.out.absolute()}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
