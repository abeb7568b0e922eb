"""An untrusted run, commands that read it, and what must hold of each of them."""

import re
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

SECRET = "no-file-may-reveal-this"


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment variable that no file may reveal."""
    monkeypatch.setenv("CIFARGAN_SECRET", SECRET)


def one_line(ran: CompletedProcess[str]) -> str:
    """The error line of a command, after a check that it is the only one and safe to print."""
    assert ran.returncode == 2, (ran.returncode, ran.stderr)
    assert "Traceback" not in ran.stderr
    assert SECRET not in ran.stderr + ran.stdout
    assert len(re.findall("^error: ", ran.stderr, re.MULTILINE)) == 1
    *_, line = ran.stderr.rstrip("\n").split("\n")
    assert line.startswith("error: ")
    assert line.isprintable()
    return line


@pytest.fixture
def refusal(command: Callable[..., CompletedProcess[str]]) -> Callable[..., str]:
    """A function that runs a command, checks that it fails with one safe line, and returns the line."""
    return lambda *arguments: one_line(command(*arguments))
