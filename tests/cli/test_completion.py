"""What Tab offers, by itself and in real shells."""

import io
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import argcomplete
import pytest
from argcomplete.finders import CompletionFinder

from cifargan.cli import COMMANDS, completion
from cifargan.cli.options import FLAGS
from cifargan.cli.tune import OWN
from cifargan.config_files import LAUNCHERS, groups, options

Command = Callable[..., CompletedProcess[str]]
Ask = Callable[[str], list[str]]
PATIENCE = 60.0  # s that a shell may take before it counts as hanging


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Ask:
    """A function: what may become of the last word of a line."""
    real = argcomplete.autocomplete
    # It would write to file descriptor 9, which may be pytest's.
    monkeypatch.setattr(CompletionFinder, "_init_debug_stream", lambda self: None)

    def answers(line: str) -> list[str]:
        out = io.StringIO()
        told = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n"}
        for name, value in {**told, "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(argcomplete, "autocomplete", partial(real, output_stream=out, exit_method=sys.exit))
        try:
            assert completion.complete() == 1
        except SystemExit:
            pass
        finally:
            monkeypatch.delenv("_ARGCOMPLETE")
        return sorted(out.getvalue().split())

    return answers


def test_groups_choices_and_keys_of_train(ask: Ask) -> None:
    assert ask("cifargan train mod") == ["model.", "model="]
    assert ask("cifargan train model=") == [f"model={name}" for name in options("model")]
    assert ask("cifargan train -m loss=hinge,b") == ["loss=hinge,bce"]
    assert "loss=bce,bce" not in ask("cifargan train -m loss=bce,")
    assert ask("cifargan train 'regularizer=[lec")[0] == "regularizer=[lecam"
    launchers = {f"hydra/launcher={name}" for name in (*LAUNCHERS, *options("hydra/launcher")) if name != "ray"}
    assert launchers <= {*ask("cifargan train -m hydra/launcher=")}
    assert "hydra.launcher.timeout_min=" in ask("cifargan train -m hydra/launcher=slurm hydra.launcher.")
    assert ask("cifargan train trainer.ema.d") == ["trainer.ema.decay="]
    assert "trainer.steps=" in ask("cifargan train trainer.")
    assert {"resume=", "sweep=", "seed=", *(f"{group}=" for group in groups())} <= {*ask("cifargan train ")}
    assert ask("cifargan train precision=b") == ["precision=bf16"]
    assert ask("cifargan train nothing.of.that") == []
    assert ask("cifargan train model=nothing trainer.ema.d") == []


def test_a_choice_defines_the_keys(ask: Ask) -> None:
    assert "data.on_broken=" in ask("cifargan train data=folder data.")
    assert "data.on_broken=" not in ask("cifargan train data=digits data.")
    assert "evaluator.samples=" in ask("cifargan train evaluator=dinov2 evaluator.")  # from _shared.yaml


def test_commands_flags_and_their_values(ask: Ask) -> None:
    assert ask("cifargan tr") == ["train"]
    assert {*COMMANDS} <= {*ask("cifargan ")}
    assert ask("cifargan nothing x") == []
    assert {*FLAGS} - {"--hydra-help", "--package", "-p"} <= {*ask("cifargan train -")}
    assert ask("cifargan train --cfg ") == ["all", "hydra", "job"]
    assert {f"{key}=" for key in OWN} <= {*ask("cifargan tune ")}
    assert {"ls", "diff", "report"} <= {*ask("cifargan runs ")}
    assert "--sort" in ask("cifargan runs ls --")
    assert "--truncations" not in ask("cifargan runs ls --")
    assert ask("cifargan sample --weights ") == ["ema", "raw"]
    assert ask("cifargan ls los") == ["loss"]
    assert ask("cifargan cat loss/h") == ["loss/hinge", "loss/hinge_smooth"]
    assert ask("cifargan cp loss/h") == ["loss/hinge", "loss/hinge_smooth"]
    assert ask("cifargan data ") == ["fetch", "inspect", "pack"]
    assert ask("cifargan data inspect data=fol") == ["data=folder"]
    assert ask("cifargan data inspect --out look mod") == []
    assert ask("cifargan completion ") == ["bash", "fish", "zsh"]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("train", "tune", "runs", "data")])
def test_every_flag_in_the_help_is_offered(name: str, ask: Ask, command: Command) -> None:
    # Examples may be of other commands.
    text = re.sub(r"^ +cifargan .*", "", command(name, "--help").stdout, flags=re.MULTILINE)
    shown = {*re.findall(r"(?<![\w-])--[a-z][\w-]*", text)} - {"--config-dir"}
    assert shown | {"--help"} <= {*ask(f"cifargan {name} --")}


def test_the_scripts(command: Command) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_ARGCOMPLETE 1" in command("completion", shell).stdout.replace("=", " ")
        assert f"cifargan completion {shell}" in command("completion", "--help").stdout
    assert "choose from 'bash'" in command("completion", "bas").stderr


NO_TORCH = """
import functools, os, sys
import argcomplete
from cifargan.cli import main
main(["--help"])
assert not {"torch", "hydra", "numpy"} & set(sys.modules)
os.environ |= dict(_ARGCOMPLETE="1", _ARGCOMPLETE_STDOUT_FILENAME=sys.argv[1], COMP_LINE=sys.argv[2], COMP_POINT="25")
argcomplete.autocomplete = functools.partial(argcomplete.autocomplete, exit_method=sys.exit)
try:
    main([])
finally:
    assert not {"torch", "numpy", "pandas"} & set(sys.modules)
"""


def test_neither_help_nor_completion_imports_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NO_TORCH, str(tmp_path / "found"), "cifargan train model=reac"]
    subprocess.run(command, capture_output=True, check=True)
    assert (tmp_path / "found").read_text().strip() == "model=reacgan"


def typed(shell: list[str], setup: str, line: str, wanted: str) -> str:
    """The output of an interactive shell when a line and Tab are typed."""
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
