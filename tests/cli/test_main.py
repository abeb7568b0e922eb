"""The dispatcher: help, versions, exit codes."""

from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

import cifargan
from cifargan.cli import COMMANDS, main
from cifargan.errors import UserError

Command = Callable[..., CompletedProcess[str]]


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",), ("help",)])
def test_help_names_every_command(arguments: tuple[str, ...], command: Command) -> None:
    ran = command(*arguments)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert all(f"\n  {name} " in ran.stdout for name in COMMANDS)


@pytest.mark.parametrize("arguments", [("--help",), *((name, "--help") for name in COMMANDS)])
def test_each_help_fits_a_screen(arguments: tuple[str, ...], command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # argparse breaks lines at the terminal's width
    ran = command(*arguments)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert 5 <= len(lines) <= 36
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_short_help_too(name: str, command: Command) -> None:
    assert command(name, "-h").stdout == command(name, "--help").stdout
    assert f"cifargan {name}" in command(name, "-h").stdout


def test_version(command: Command) -> None:
    ran = command("--version")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"cifargan {cifargan.__version__}\n", "")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("the wrong colour"), 2, "error: the wrong colour\n"),
        (KeyboardInterrupt(), 130, "error: stopped\n"),
        (AssertionError("oh"), 1, "error: this is a bug in cifargan: AssertionError('oh')\n"),
    ],
)
def test_errors_of_a_command(
    error: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr("cifargan.cli.sample.run", fail)
    assert main(["sample"]) == code
    err = capsys.readouterr().err
    assert err.endswith(text)
    assert ("Traceback" in err) == (code == 1)
    assert main(["sample", "--traceback"]) == code
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "in fail" in err
    assert err.endswith(text)


def test_main_takes_the_command_line_by_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["cifargan", "--version"])
    assert main() == 0
    assert capsys.readouterr().out == f"cifargan {cifargan.__version__}\n"


def test_every_command_keeps_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("cifargan.cli.keep_freed_memory", lambda: told.append("kept"))
    monkeypatch.setattr("cifargan.cli.sample.run", lambda _: told.append("ran"))
    main(["sample"])
    assert told == ["kept", "ran"]
