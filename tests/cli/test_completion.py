"""What Tab offers, by itself and in real shells."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from cifargan.cli import COMMANDS
from cifargan.cli.completion import SCRIPTS, Source, complete
from cifargan.config_files import groups, keys_of, options
from cifargan.schema import conf_dir

Command = Callable[..., CompletedProcess[str]]
PATIENCE = 60.0  # s that a shell may take before it counts as hanging


def test_commands_groups_choices_keys() -> None:
    assert complete(["tr"]) == ["train"]
    assert {*COMMANDS} <= {*complete([""])}
    assert complete(["train", "mod"]) == ["model.", "model="]
    assert complete(["train", "model="]) == [f"model={name}" for name in options("model")]
    assert complete(["train", "-m", "loss=hinge,b"]) == ["loss=hinge,bce"]
    assert "loss=bce,bce" not in complete(["train", "-m", "loss=bce,"])
    assert complete(["train", "-m", "hydra/launcher=s"]) == [
        f"hydra/launcher={name}" for name in ("slurm", "submitit_local", "submitit_slurm")
    ]
    assert "hydra.launcher.timeout_min=" in complete(["train", "-m", "hydra/launcher=slurm", "hydra.launcher."])
    assert complete(["train", "trainer.ema.d"]) == ["trainer.ema.decay="]
    assert complete(["train", "see"]) == ["seed="]
    assert complete(["train", "precision=b"]) == ["precision=bf16"]
    assert complete(["train", "nothing.of.that"]) == []
    assert complete(["nothing", ""]) == []


def test_a_choice_decides_which_keys_there_are() -> None:
    assert "data.root=" in complete(["train", "data=folder", "data."])
    assert "data.on_broken=" in complete(["train", "data=folder", "data."])
    assert "data.on_broken=" not in complete(["train", "data=digits", "data."])
    assert "evaluator.samples=" in complete(["train", "evaluator=dinov2", "evaluator."])  # from _shared.yaml


def test_every_key_of_every_config_can_be_reached() -> None:
    keys = {
        key for group in groups() for name in options(group) for key in keys_of(conf_dir() / group / f"{name}.yaml")
    }
    levels = {key.rpartition(".")[0] for key in keys}
    offered = {word for level in levels for word in complete(["train", f"{level}." if level else ""])}
    assert {key for key in keys if f"{key}=" not in offered and f"{key}." not in offered} == set()


@pytest.mark.parametrize("command_name", COMMANDS)
def test_every_flag_in_the_help_is_offered(command_name: str, command: Command) -> None:
    """So that flags read out of the source cannot miss one."""
    subs = [*Source(command_name).commands] or [""]
    for sub in subs:
        words = [command_name, *([sub] if sub else [])]
        # Examples may be of other commands.
        text = re.sub(r"^ +cifargan .*", "", command(*words, "--help").stdout, flags=re.MULTILINE)
        shown = {*re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
        offered = {*complete([*words, "--"])}
        if command_name not in ("train", "tune", "runs", "data"):  # whose texts mention flags of others
            assert shown <= offered | {"--config-dir"}, words
        assert "--help" in offered


def test_values_of_flags_and_what_is_no_flag() -> None:
    assert complete(["sample", "--weights", ""]) == ["ema", "raw"]
    assert complete(["runs", ""]) == sorted([*Source("runs").commands, "--help"])
    assert "--sort" in complete(["runs", "ls", "--"])
    assert "--truncations" not in complete(["runs", "ls", "--"])
    assert complete(["ls", "los"]) == ["loss"]
    assert complete(["cat", "loss/h"]) == ["loss/hinge", "loss/hinge_smooth"]
    assert complete(["data", "inspect", "data=fol"]) == ["data=folder"]
    assert complete(["data", "inspect", "mod"]) == []
    assert "study=" in complete(["tune", "st"])
    assert complete(["completion", ""]) == ["bash", "fish", "zsh"]
    assert complete(["sample", "--out", ""]) == []


def test_scripts_and_typos(command: Command) -> None:
    for shell, script in SCRIPTS.items():
        assert command("completion", shell).stdout == script
    assert "did you mean bash?" in command("completion", "bas").stderr
    assert command("completion", "--words", "tra").stdout == "train\n"
    assert command("completion", "--words", "sample", "--out", "").stdout == ""


def test_neither_help_nor_completion_imports_torch_or_hydra() -> None:
    code = (
        "import sys; from cifargan.cli import main; main(['--help']); main(['completion', '--words', 'train', 'tr']);"
        "print(sorted({'torch', 'hydra', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def typed(shell: list[str], setup: str, line: str, wanted: str) -> str:
    """What an interactive shell shows when a line and Tab are typed."""
    child, terminal = pty.fork()
    if child == 0:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        os.execvpe(shell[0], shell, {**os.environ, "PATH": path, "TERM": "dumb", "PS1": "> ", "HOME": "/nonexistent"})
    shown = ""
    ended = time.monotonic() + PATIENCE
    try:
        os.write(terminal, f"{setup}; echo re''ady\n".encode())
        sent = False
        while wanted not in shown and time.monotonic() < ended:
            if select.select([terminal], [], [], 0.2)[0]:
                read = os.read(terminal, 4096).decode(errors="replace")
                shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x1f]", "", read)  # bells and colours
            if not sent and "ready" in shown:
                sent, shown = True, ""
                os.write(terminal, f"{line}\t".encode())
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)
    return shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "setup"),
    [
        (["bash", "--norc", "--noprofile", "-i"], 'eval "$(cifargan completion bash)"'),
        (
            ["zsh", "-f", "-i"],
            'autoload -U compinit; compinit -u -D; unsetopt zle_bracketed_paste; eval "$(cifargan completion zsh)"',
        ),
    ],
    ids=["bash", "zsh"],
)
def test_a_real_shell_completes(shell: list[str], setup: str) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    assert "model=reacgan" in typed(shell, setup, "cifargan train model=reac", "model=reacgan")
    assert "trainer.ema.decay=" in typed(shell, setup, "cifargan train trainer.ema.dec", "trainer.ema.decay=")


@pytest.mark.slow
def test_fish_completes() -> None:
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("fish is not installed")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    code = (
        "cifargan completion fish | source; complete -C 'cifargan train model=reac'; complete -C 'cifargan runs comp'"
    )
    ran = subprocess.run(
        [fish, "--no-config", "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
    )
    assert ran.stdout.split() == ["model=reacgan", "compare"]
