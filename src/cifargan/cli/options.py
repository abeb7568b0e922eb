"""Options that several commands share, and the kinds of numbers they take."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cifargan.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from cifargan.loading import LoadedGenerator


# Hydra's flags that make sense here.
SHORT = {
    "-m": "--multirun",
    "-c": "--cfg",
    "-i": "--info",
    "-cd": "--config-dir",
    "-cn": "--config-name",
    "-p": "--package",
}
SHOW = ("--cfg", "--info", "--hydra-help")
WITH_VALUE = ("--cfg", "--config-dir", "--config-name", "--package")
FLAGS = (*SHOW, *WITH_VALUE[1:], "--multirun", "--resolve")


class Parser(argparse.ArgumentParser):
    """Reports a wrong option as every other error is reported, and takes a line an option for its help."""

    def __init__(self, **settings: Any) -> None:
        formatter = partial(argparse.RawDescriptionHelpFormatter, max_help_position=28, width=100)
        super().__init__(formatter_class=formatter, **settings)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, or complete for a shell and end the process."""
        self._complete()
        return super().parse_args(args, namespace)

    def parse_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, or complete for a shell and end the process."""
        self._complete()
        return super().parse_intermixed_args(args, namespace)

    def _complete(self) -> None:
        if "_ARGCOMPLETE" in os.environ:
            from cifargan.cli.completion import offer

            offer(self)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing a page of usage."""
        hint = ""
        if unknown := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            hint = did_you_mean(unknown[1], self._option_string_actions)
        raise UserError(f"{message}{hint or f'; see {self.prog} --help'}")


def completed_by(action: argparse.Action, completer: Callable[..., Iterable[str]]) -> None:
    """Let `completer(prefix, parsed_args, **others)` supply the values of an argument to a shell."""
    action.completer = completer  # type: ignore[attr-defined]


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return value


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 on")
    return int(text)


def seed(text: str) -> int:
    """A whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 0 on")
    return int(text)


def add_generator_options(p: argparse.ArgumentParser) -> None:
    """Which run, which of its weights, and how they are used."""
    p.add_argument(
        "run", nargs="?", metavar="RUN", help="folder of the run, or a .safetensors file; default: the newest"
    )
    p.add_argument("--root", default="outputs", help="where runs lie (default: outputs)")
    p.add_argument("--checkpoint", metavar="WHICH", default="last", help="last, best or a step (default: last)")
    p.add_argument("--weights", choices=("ema", "raw"), default="ema", help="the average or the raw weights")
    p.add_argument(
        "--batch-norm",
        choices=("standing", "running", "batch"),
        metavar="MODE",
        default="standing",
        help="standing, running or batch statistics (default: standing)",
    )
    p.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    p.add_argument(
        "--batch-size", type=count, metavar="N", default=100, help="images at once; has no influence on them"
    )


def load_chosen(source: Path, options: argparse.Namespace) -> LoadedGenerator:
    """The generator of a run, or in a file, that `add_generator_options` let a user choose."""
    # Commands that load none start without torch.
    from cifargan.loading import load_generator

    return load_generator(
        source,
        checkpoint=options.checkpoint,
        weights=options.weights,
        batch_norm=options.batch_norm,
        device=options.device,
        batch_size=options.batch_size,
    )


def split_flags(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Separate Hydra's flags, with their values, from the overrides.

    Raises:
        UserError: a flag that is unknown, lacks its value or contradicts another.
    """
    flags: dict[str, str] = {}
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        name, equals, value = argument.partition("=")
        name = SHORT.get(name, name)
        if name not in FLAGS:
            hint = did_you_mean(name, FLAGS) or "; settings are written key=value, see cifargan train --help"
            raise UserError(f"{name}: no such option{hint}")
        flags[name] = value if equals or name not in WITH_VALUE else next(rest, "")
        if name in WITH_VALUE and not flags[name]:
            raise UserError(f"{name}: needs a value")
    if "--info" in flags:
        flags["--info"] = flags["--info"] or "all"  # without a value Hydra would take the first override for it
    if flags.get("--cfg", "job") not in ("job", "hydra", "all"):
        raise UserError(f"--cfg {flags['--cfg']}: choose from job, hydra, all")
    shows = [name for name in SHOW if name in flags]
    if shows and "--multirun" in flags:
        raise UserError(f"-m sweeps, {shows[0]} only shows: choose one of them")
    if alone := [name for name in ("--resolve", "--package") if name in flags and not shows]:
        raise UserError(f"{alone[0]}: goes with --cfg")
    return flags, overrides


def as_arguments(flags: dict[str, str]) -> list[str]:
    """Flags as Hydra reads them, before all overrides."""
    return [f"{name}={value}" if value else name for name, value in flags.items()]
