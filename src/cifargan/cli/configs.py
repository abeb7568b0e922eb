"""`cifargan ls`, `cat` and `cp`: list, show and copy the shipped configs."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from cifargan.cli.options import Parser, completed_by
from cifargan.config_files import LAUNCHER, Shipped, all_groups, find, first_comment, labels, options
from cifargan.errors import UserError, did_you_mean
from cifargan.files import write_atomically
from cifargan.schema import conf_dir
from cifargan.untrusted import readable


def ls(arguments: list[str]) -> int:
    """List groups, or the configs of some."""
    p = Parser(prog="cifargan ls", description="The shipped configs, one line each.")
    names = p.add_argument("groups", nargs="*", metavar="GROUP", help="model, loss, experiment, ...; default: all")
    completed_by(names, lambda **_: all_groups())
    chosen = [_group(name) for name in p.parse_args(arguments).groups]
    width = shutil.get_terminal_size((100, 24)).columns
    blocks = []
    for group in chosen or all_groups():
        longest = max(map(len, options(group)))
        about = {name: first_comment(conf_dir() / group / f"{name}.yaml") for name in options(group)}
        lines = [f"  {name:{longest}}  {text}".rstrip() for name, text in about.items()]
        cut = [line if len(line) <= width else f"{line[: width - 3].rstrip()}..." for line in lines]
        blocks.append("\n".join([f"{group}=", *cut]))
    if not chosen:
        blocks.append("`cifargan cat experiment/biggan` shows one, `cifargan cp experiment/biggan my.yaml` copies it")
    _show("\n\n".join(blocks) + "\n")
    return 0


def _show(text: str) -> None:
    """Print. A reader such as `head` may close the pipe early."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        # The rest of the buffer would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _group(name: str) -> str:
    """The group of that name; `experiments` and `experiment=` are accepted too.

    Raises:
        UserError: There is none.
    """
    known = all_groups()
    for one in (name.strip("/="), name.strip("/=").removesuffix("s"), name.strip("/=").removesuffix("es")):
        if one in known:
            return one
    hint = did_you_mean(name, known) or f"; choose from {', '.join(known)}"
    raise UserError(f"{name}: no such group{hint}")


def cat(arguments: list[str]) -> int:
    """Show configs."""
    p = Parser(prog="cifargan cat", description="Show shipped configs unchanged, with their comments.")
    names = p.add_argument(
        "configs", nargs="+", metavar="GROUP/NAME", help="such as experiment/biggan; see cifargan ls"
    )
    completed_by(names, lambda **_: labels())
    found = [find(label) for label in p.parse_args(arguments).configs]
    _show("".join(shipped.path.read_text(encoding="utf-8") for shipped in found))
    return 0


def cp(arguments: list[str]) -> int:
    """Copy a config."""
    p = Parser(prog="cifargan cp", description="Copy a shipped config to edit it, into a folder named like its group.")
    completed_by(p.add_argument("config", metavar="GROUP/NAME", help="such as experiment/biggan"), lambda **_: labels())
    p.add_argument("to", metavar="FILE.yaml|DIR", help="its new name, or a folder that gets it as my_NAME")
    p.add_argument("--force", action="store_true", help="replace an existing file")
    given = p.parse_args(arguments)
    shipped = find(given.config)
    target = _destination(shipped, Path(given.to))
    if target.exists() and not given.force:
        raise UserError(f"{readable(str(target))} exists: give another name, or --force to replace it")
    write_atomically(target, shipped.path.read_bytes())
    folder = target.parents[shipped.group.count("/") + 1 if shipped.group else 0]
    chosen = f"{shipped.group}={target.stem}" if shipped.group else f"--config-name {target.stem}"
    sweep = "-m " if shipped.group == LAUNCHER else ""
    print(
        f"{readable(str(target))}\nuse it with: cifargan train {sweep}--config-dir {shlex.quote(str(folder))} {chosen}"
    )
    return 0


def _destination(shipped: Shipped, to: Path) -> Path:
    """The file to copy to: `--config-dir` finds it only in a folder named like its group.

    Raises:
        UserError: The copy would have the name of a shipped config, which Hydra would use instead.
    """
    if to.suffix in (".yaml", ".yml"):
        folder, name = to.parent, to.stem
    else:
        folder, name = to, f"my_{shipped.name}"
    if shipped.group and not folder.absolute().as_posix().endswith(f"/{shipped.group}"):
        folder = folder / shipped.group
    if name in ([shipped.name] if not shipped.group else options(shipped.group)):
        raise UserError(f"{name}: a shipped config has that name and would be used instead: choose another")
    if not name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"{readable(name)}: the name of a config has letters, digits, - and _: choose another")
    return folder / f"{name}.yaml"
