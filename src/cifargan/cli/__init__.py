"""The command line: one file per command, and one place where errors become a line."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from cifargan import __version__
from cifargan.cli.errors import report
from cifargan.errors import UserError, did_you_mean

# Modules, not functions: torch is imported by the command that needs it, so `--help` is instant.
COMMANDS = {
    "train": "train a GAN, or go on with a run; every setting can be given as key=value, -m sweeps",
    "sample": "pictures from a trained generator: class sheets, single files, .npz, interpolations",
    "evaluate": "FID, IS, KID, precision, recall, density, coverage of a run or of anyone's images",
    "bench": "how fast training is here, against plain PyTorch that computes the same",
}

HELP = f"""cifargan {__version__}: train and judge GANs on CIFAR-10 class images

commands:
{chr(10).join(f"  {name:8} {text}" for name, text in COMMANDS.items())}

examples:
  cifargan train experiment=biggan_lecam_diffaug      the best recipe, on CIFAR-10
  cifargan train model=biggan loss=hinge              free combination
  cifargan sample --truncation 0.5 --per-class 100    class sheets from the newest run

`cifargan COMMAND --help` says more. --traceback, anywhere, shows where an error comes from.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 2 for what the user can mend, 130 and 143 for signals."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        print(f"cifargan {__version__}")
        return 0
    try:
        return _command(arguments[0])(arguments[1:])
    except (Exception, KeyboardInterrupt) as error:
        return report(error, traceback=traceback)


def _command(name: str) -> Callable[[list[str]], int]:
    if name not in COMMANDS:
        raise UserError(f"cifargan {name}: no such command{did_you_mean(name, COMMANDS) or '; see cifargan --help'}")
    run: Callable[[list[str]], int] = import_module(f"cifargan.cli.{name}").run
    return run
