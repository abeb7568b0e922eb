"""`cifargan ls`, `cat` and `cp`: the shipped configs, and a copy of one to edit."""

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from cifargan.config_files import LAUNCHER, Shipped, all_groups, find, first_comment, options
from cifargan.errors import UserError, did_you_mean
from cifargan.files import write_atomically
from cifargan.schema import conf_dir
from cifargan.untrusted import readable


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser of these commands."""
    # cifargan.cli.options would import torch.
    return _Parser(prog=f"cifargan {name}", description=description)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def ls(arguments: list[str]) -> int:
    """List groups, or the configs of some."""
    p = parser("ls", "The shipped configs, a line for each.")
    p.add_argument("groups", nargs="*", metavar="GROUP", help="model, loss, experiment, data, ...; default: all groups")
    chosen = [_group(name) for name in p.parse_args(arguments).groups]
    width = shutil.get_terminal_size((100, 24)).columns
    blocks = []
    for group in chosen or all_groups():
        names = options(group)
        longest = max(map(len, names))
        about = [first_comment(conf_dir() / group / f"{name}.yaml") for name in names]
        lines = [f"  {name:{longest}}  {text}".rstrip() for name, text in zip(names, about, strict=True)]
        blocks.append("\n".join([f"{group}=", *(_cut(line, width) for line in lines)]))
    if not chosen:
        blocks.append("`cifargan cat experiment/biggan` shows one, `cifargan cp experiment/biggan my.yaml` copies it")
    _show("\n\n".join(blocks) + "\n")
    return 0


def _show(text: str) -> None:
    """Print; whoever reads only the beginning, such as `head`, has what he wanted."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        # What is left in the buffer would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 3].rstrip()}..."


def _group(name: str) -> str:
    """A group by its name, the plural included.

    Raises:
        UserError: there is none.
    """
    known = all_groups()
    for one in (name.strip("/="), name.strip("/=").removesuffix("s"), name.strip("/=").removesuffix("es")):
        if one in known:
            return one
    hint = did_you_mean(name, known) or f"; choose from {', '.join(known)}"
    raise UserError(f"{name}: no such group{hint}")


def cat(arguments: list[str]) -> int:
    """Show configs."""
    p = parser("cat", "Show shipped configs as they are, comments included.")
    p.add_argument("configs", nargs="+", metavar="GROUP/NAME", help="such as experiment/biggan; `cifargan ls` has them")
    found = [find(label) for label in p.parse_args(arguments).configs]
    _show("".join(shipped.path.read_text(encoding="utf-8") for shipped in found))
    return 0


def cp(arguments: list[str]) -> int:
    """Copy a config."""
    p = parser(
        "cp", "Copy a shipped config to edit it. It goes into a folder called like its group, where it is found."
    )
    p.add_argument("config", metavar="GROUP/NAME", help="such as experiment/biggan")
    p.add_argument("to", metavar="FILE.yaml|DIR", help="its new name, or a folder that gets it as my_NAME")
    p.add_argument("--force", action="store_true", help="replace a file that is there")
    given = p.parse_args(arguments)
    shipped = find(given.config)
    target = destination(shipped, Path(given.to))
    if target.exists() and not given.force:
        raise UserError(f"{readable(str(target))} is there already: give another name, or --force to replace it")
    write_atomically(target, shipped.path.read_bytes())
    print(readable(str(target)))
    print(f"use it with: {usage(shipped, target)}")
    return 0


def destination(shipped: Shipped, to: Path) -> Path:
    """Where a copy goes: `--config-dir` finds it in a folder called like its group alone.

    Args:
        shipped: what is copied.
        to: what the user said: a file, or a folder.

    Raises:
        UserError: the copy would have the name of a shipped config, which Hydra would take instead.
    """
    if to.suffix in (".yaml", ".yml"):
        folder, name = to.parent, to.stem
    else:
        folder, name = to, f"my_{shipped.name}"
    if shipped.group and not folder.absolute().as_posix().endswith(f"/{shipped.group}"):
        folder = folder / shipped.group
    if name in ([shipped.name] if not shipped.group else options(shipped.group)):
        raise UserError(f"{name}: a shipped config has that name, and it would be taken instead: choose another")
    if not name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"{readable(name)}: a config's name has letters, digits, - and _: choose another")
    return folder / f"{name}.yaml"


def usage(shipped: Shipped, target: Path) -> str:
    """The command that trains with a copy."""
    folder = target.parents[shipped.label.count("/")]
    chosen = f"{shipped.group}={target.stem}" if shipped.group else f"--config-name {target.stem}"
    sweep = "-m " if shipped.group == LAUNCHER else ""
    return f"cifargan train {sweep}--config-dir {shlex.quote(str(folder))} {chosen}"
