"""`cifargan completion`: Tab in bash, zsh and fish.

argcomplete supplies the shell scripts. They run `cifargan` with `_ARGCOMPLETE` set; `complete` then builds the parser of
the one command that is being typed. Hydra's own completion supplies groups, choices and keys.
"""

import argparse
import os
from collections.abc import Iterable
from importlib import import_module

import argcomplete
from argcomplete.lexers import split_line
from argcomplete.shell_integration import shellcode

from cifargan import cli
from cifargan.cli.options import Parser, completed_by

HELP = """Print a script that lets Tab complete commands, flags, groups, choices and keys:
  bash   eval "$(cifargan completion bash)"     permanently: in ~/.bashrc
  zsh    eval "$(cifargan completion zsh)"      permanently: in ~/.zshrc, after compinit
  fish   cifargan completion fish | source      permanently: in ~/.config/fish/config.fish"""
# Settings that are not in the configs, and those with a short list of values.
TUNE = ("n_trials", "storage", "study", "objective", "pruner")
VALUES = {
    "device": ("auto", "cpu", "cuda", "mps"),
    "precision": ("auto", "bf16", "fp16", "fp32"),
    "resume": ("latest",),
    "sweep": ("resume",),
    "pruner": ("median", "hyperband", "none"),
}


def run(arguments: list[str]) -> int:
    """Print the script for a shell."""
    p = Parser(prog="cifargan completion", description=HELP)
    p.add_argument("shell", choices=("bash", "zsh", "fish"))
    print(shellcode(["cifargan"], shell=p.parse_args(arguments).shell))
    return 0


def complete() -> int:
    """Answer the shell's question in `COMP_LINE` and end the process; 1 if there is no answer."""
    words = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))[3][1:]
    if not words:
        offer(_choice("cifargan", [*cli.COMMANDS, "--help", "--version"]))
    name, *rest = words
    if name not in cli.COMMANDS:
        return 1
    if name in ("train", "tune"):
        offer(_with_overrides(name))
    module_name, function = cli.SHARED.get(name, (name, "run"))
    module = import_module(f"cifargan.cli.{module_name}")
    if (commands := getattr(module, "COMMANDS", None)) and not rest:
        offer(_choice(f"cifargan {name}", commands))
    # The command's own `parse_args` calls `offer`, before the command does anything.
    getattr(module, function)(rest)
    return 1


def offer(parser: argparse.ArgumentParser) -> None:
    """Print what may come next according to a parser, and end the process."""
    os.environ["_ARGCOMPLETE"] = str(len(parser.prog.split()))
    argcomplete.autocomplete(parser, always_complete_options=False)


def _choice(prog: str, words: Iterable[str]) -> Parser:
    p = Parser(prog=prog)
    completed_by(p.add_argument("word", nargs="?"), lambda **_: words)
    return p


def _with_overrides(name: str) -> Parser:
    p = Parser(prog=f"cifargan {name}")
    if name == "train":
        p.add_argument("--multirun", "-m", action="store_true")
        p.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
        p.add_argument("--info", "-i", nargs="?")
        p.add_argument("--resolve", action="store_true")
        p.add_argument("--config-name", "-cn")
    p.add_argument("--config-dir", "-cd")
    own = [f"{key}=" for key in (TUNE if name == "tune" else ("resume", "sweep"))]

    def completer(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
        return [*(own if "=" not in prefix else ()), *overrides(prefix, parsed_args)]

    completed_by(p.add_argument("overrides", nargs="*"), completer)
    return p


def overrides(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """What an override of `train` may become: groups, their choices, and keys, one level at a time.

    Args:
        prefix: What is typed of it. In a sweep or a list, the last value is completed.
        parsed_args: Its `overrides` are the earlier ones, which decide what there is to choose from.
    """
    from hydra import initialize_config_dir
    from hydra._internal.core_plugins.bash_completion import BashCompletion
    from hydra.core.global_hydra import GlobalHydra

    from cifargan.schema import conf_dir

    key, equals, value = prefix.partition("=")
    before = value[: max(value.rfind(","), value.rfind("[")) + 1]
    if equals and key in VALUES:
        return [f"{key}={before}{one}" for one in VALUES[key]]
    earlier = [word for word in getattr(parsed_args, "overrides", None) or [] if "=" in word and " " not in word]
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        hydra = BashCompletion(GlobalHydra.instance().config_loader())

        def ask(word: str) -> list[str]:
            try:
                return hydra._query("train", " ".join([*earlier, word]) or " ")
            except Exception:  # an earlier word that cannot be composed; there is nobody to tell
                return []

        found = ask(f"{key}{equals}{value[len(before) :]}")
        while len(found) == 1 and found[0].endswith("."):
            found = ask(found[0])  # a node alone would be taken for a whole word
    taken = before.strip("[").split(",")
    values = [one.partition("=") for one in found]
    return [f"{a}{b}{before}{c}" if equals else f"{a}{b}{c}" for a, b, c in values if not equals or c not in taken[:-1]]
