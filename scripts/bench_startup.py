"""Measures how much CPU time the command line takes before it does anything.

    python scripts/bench_startup.py [--repeats 5]

CPU seconds of the process and its children, user and system, the least of several repeats: on a busy machine the clock
says how busy it is. `train` is taken to the end of its first step (on digits, without an evaluator), less what importing
torch takes by itself.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = (sys.executable, "-m", "cifargan")
# The command, which ends with its first round: what a run does at its end is no part of starting one.
FIRST_STEP = """
import os, sys
from cifargan.cli import main
from cifargan.training.game import Game

iterate = Game.iterate


def once(game):
    iterate(game)
    os._exit(0)


Game.iterate = once
sys.exit(main(["train", "experiment=quickstart", "device=cpu", "evaluator=none"]) or 1)
"""
CASES = {
    "cifargan --help": (*COMMAND, "--help"),
    "completion of train trainer.": (*COMMAND, "completion", "--words", "train", "trainer."),
    "import torch": (sys.executable, "-c", "import torch"),
    "train to its first step": (sys.executable, "-c", FIRST_STEP),
}
AIMS = {"cifargan --help": 0.5, "completion of train trainer.": 0.5, "train, less import torch": 10.0}


def cpu_seconds(command: tuple[str, ...], folder: Path) -> float:
    """User and system time of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Measure, print, and return 1 where an aim is missed."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--repeats", type=int, default=5)
    repeats = p.parse_args().repeats
    taken: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in CASES.items():
            taken[name] = min(cpu_seconds(command, Path(folder)) for _ in range(repeats))
    taken["train, less import torch"] = taken["train to its first step"] - taken["import torch"]
    print(f"{'CPU seconds, least of ' + str(repeats):32} {'taken':>6} {'aim':>6}")
    for name, seconds in taken.items():
        print(f"{name:32} {seconds:6.2f} {AIMS.get(name, ''):>6}")
    return int(any(taken[name] > aim for name, aim in AIMS.items()))


if __name__ == "__main__":
    sys.exit(main())
