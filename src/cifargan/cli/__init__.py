"""The command line: one file per command, and one place where errors become a line."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from cifargan import __version__
from cifargan.errors import UserError, did_you_mean
from cifargan.malloc import keep_freed_memory

# Modules, not functions: torch is imported by the command that needs it, so `--help` is instant.
COMMANDS = {
    "train": "a GAN, or resume a run; any setting as key=value, -m sweeps",
    "tune": "search for the settings with the best score",
    "sample": "pictures from a generator: sheets, files, .npz, interpolations",
    "evaluate": "FID, IS, KID, precision, recall of a run or of anyone's images",
    "export": "a generator in one file: safetensors, ONNX, torch.export",
    "runs": "every run in a table, side by side, as a page to show",
    "bench": "how fast training is here, against plain PyTorch",
    "data": "look at images, fetch CIFAR-10, pack a folder into a zip",
    "ls": "the shipped configs, a line for each: cifargan ls model",
    "cat": "show a shipped config: cifargan cat experiment/biggan",
    "cp": "copy one to edit it: cifargan cp experiment/biggan my.yaml",
    "doctor": "what is here and what is missing: GPU, disk, data, weights",
    "completion": "a script that lets Tab complete in bash, zsh or fish",
}

# Those that share a file: command -> module, function.
SHARED = {"ls": ("configs", "ls"), "cat": ("configs", "cat"), "cp": ("configs", "cp")}

HELP = f"""cifargan {__version__}: train and judge GANs on CIFAR-10 class images

{chr(10).join(f"  {name:10}  {text}" for name, text in COMMANDS.items())}

examples:
  cifargan train experiment=biggan_lecam_diffaug    the best recipe, on CIFAR-10
  cifargan train model=biggan loss=hinge            free combination
  cifargan sample --truncation 0.5                  sheets from the newest run

`cifargan COMMAND --help` says more.
--traceback, anywhere, shows where an error comes from.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 2 for what the user can mend, 130 and 143 for signals."""
    if "_ARGCOMPLETE" in os.environ:
        from cifargan.cli.completion import complete

        return complete()
    arguments = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        print(f"cifargan {__version__}")
        return 0
    keep_freed_memory()
    try:
        return _command(arguments[0])(arguments[1:])
    except (Exception, KeyboardInterrupt) as error:
        # Hydra and OmegaConf, whose errors are reported too, take longer to import than `--help` to print.
        from cifargan.explain import report

        return report(error, traceback=traceback)


def _command(name: str) -> Callable[[list[str]], int]:
    if name not in COMMANDS:
        raise UserError(f"cifargan {name}: no such command{did_you_mean(name, COMMANDS) or '; see cifargan --help'}")
    module, function = SHARED.get(name, (name, "run"))
    run: Callable[[list[str]], int] = getattr(import_module(f"cifargan.cli.{module}"), function)
    return run
