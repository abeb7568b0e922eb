"""`cifargan runs`: what lies under `outputs/`, side by side, and as a page to show."""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cifargan.cli.options import Parser, count, positive
from cifargan.cli.tables import aligned
from cifargan.errors import UserError, did_you_mean
from cifargan.report.listing import as_csv, as_json, differences, run_table, score_rows
from cifargan.report.reading import config_of
from cifargan.report.selection import SORTS, Selection, below, shown_path
from cifargan.report.summary import STATUSES, RunSummary
from cifargan.runs.directory import find_run

HELP = """cifargan runs ls [options]              every run: status, age, step, score and its protocol, speed
cifargan runs compare RUN RUN ...       their scores side by side
cifargan runs diff RUN RUN              the settings in which two runs differ
cifargan runs report [RUN ...]          one page to show: scores, curves, pictures, provenance
cifargan runs tensorboard [RUN ...]     TensorBoard on these runs, for this machine alone

RUN is a run's folder, as it is or below --root; `latest` is the newest.
`cifargan runs COMMAND --help` says more.
"""

Command = Callable[[list[str]], int]


def run(arguments: list[str]) -> int:
    """Hand over to one of the commands; `ls` without any."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    name, rest = (arguments[0], arguments[1:]) if arguments and not arguments[0].startswith("-") else ("ls", arguments)
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f"; choose from {', '.join(COMMANDS)}"
        raise UserError(f"cifargan runs {name}: no such command{hint}")
    return COMMANDS[name](rest)


def _parser(name: str, description: str, *, runs: str | None = None, filters: bool = False) -> argparse.ArgumentParser:
    """A parser with what all commands share.

    Args:
        name: the command.
        description: what it does.
        runs: how many runs it takes, as `nargs`; None for none.
        filters: whether it takes the filters of `ls`.
    """
    p = Parser(prog=f"cifargan runs {name}", description=description)
    p.set_defaults(runs=[], status=[], name=None, where=[], sort=None, reverse=False)
    if runs:
        p.add_argument("runs", nargs=runs, metavar="RUN", help="folder of a run; default: every run under --root")
    p.add_argument("--root", type=Path, default=Path("outputs"), help="where runs lie (default: outputs)")
    if filters:
        p.add_argument("--status", type=_words, metavar="S,S", help=", ".join(STATUSES))
        p.add_argument("--name", metavar="TEXT", help="part of its name or path; * stands for anything")
        p.add_argument(
            "--where", action="append", metavar="KEY=VALUE", help="a setting, such as loss.name=hinge; may be repeated"
        )
        p.add_argument("--sort", metavar="BY", help=f"{', '.join(SORTS)} (default: started)")
        p.add_argument("--reverse", action="store_true", help="the other way round")
    return p


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _selected(options: argparse.Namespace) -> list[RunSummary]:
    return Selection(
        root=options.root,
        names=options.runs,
        status=options.status,
        name=options.name,
        where=options.where or [],
        sort=options.sort,
        reverse=options.reverse,
    ).runs()


def ls(arguments: list[str]) -> int:
    """List runs."""
    p = _parser("ls", "Every run: status, age, step, score, images a second, device.", filters=True)
    shape = p.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="everything that is known, for programs")
    shape.add_argument("--csv", action="store_true", help="a line a run, for spreadsheets")
    options = p.parse_args(arguments)
    runs = _selected(options)
    if options.json:
        print(as_json(runs))
    elif options.csv:
        print(as_csv(runs), end="")
    else:
        _print(*run_table(runs, options.root))
    return 0


def _print(rows: list[list[str]], footnotes: Sequence[str]) -> None:
    print("\n".join(aligned(rows)))
    if footnotes:
        print("\nonly scores with the same letter can be ranked:" if len(footnotes) > 1 else "")
        print("\n".join(footnotes))


def compare(arguments: list[str]) -> int:
    """Scores side by side."""
    p = _parser("compare", "Scores side by side, a row for each score and protocol.", runs="+")
    options = p.parse_args(arguments)
    runs = _selected(options)
    if not any(run.best or run.scores for run in runs):
        raise UserError("none of these runs has a score yet: cifargan evaluate RUN gives them")
    _print(*score_rows(runs, options.root))
    return 0


def diff(arguments: list[str]) -> int:
    """Two configurations' differences."""
    p = _parser("diff", "The settings in which two runs differ.", runs="+")
    options = p.parse_args(arguments)
    if len(options.runs) != 2:
        raise UserError(f"cifargan runs diff takes two runs, not {len(options.runs)}")
    found = [find_run(name, options.root) for name in options.runs]
    configs = [config_of(run) for run in found]
    for run_found, config in zip(found, configs, strict=True):
        if not config:
            raise UserError(f"{run_found.path} has no configuration that can be read (.hydra/config.yaml)")
    rows = differences(*configs)
    if not rows:
        print("no setting differs")
        return 0
    names = [shown_path(run_found.path, options.root) for run_found in found]
    print("\n".join(aligned([["setting", *names], *map(list, rows)])))
    return 0


def report(arguments: list[str]) -> int:
    """One page about runs."""
    p = _parser("report", "One page that needs nothing else: a file to open, keep, send.", runs="*", filters=True)
    p.add_argument("--out", type=Path, metavar="FILE", default=Path("report.html"), help="default: report.html")
    p.add_argument(
        "--truncations", type=_thresholds, metavar="T,T", default=[], help="draw samples at these now: 0.3,0.5,0.7,1.0"
    )
    p.add_argument("--device", default="auto", help="where to draw them: auto, cuda, mps or cpu")
    p.add_argument("--megabytes", type=count, metavar="N", default=8, help="the page's size at most (default: 8)")
    options = p.parse_args(arguments)
    from cifargan.report.page import write_report

    for line in write_report(
        _selected(options),
        options.out,
        root=options.root,
        truncations=options.truncations,
        device=options.device,
        limit=options.megabytes * 10**6,
    ):
        print(line)
    print(options.out)
    return 0


def _thresholds(text: str) -> list[float]:
    return [positive(part) for part in text.split(",")]


def tensorboard(arguments: list[str]) -> int:
    """TensorBoard, until Ctrl-C."""
    p = _parser("tensorboard", "TensorBoard on these runs.", runs="*")
    p.add_argument("--host", default="localhost", help="who may connect (default: localhost, this machine alone)")
    p.add_argument("--port", type=count, default=6006, help="default: 6006")
    options = p.parse_args(arguments)
    runs = _selected(options)
    with tempfile.TemporaryDirectory() as folder:
        link(runs, options.root, Path(folder))
        command = tensorboard_command(Path(folder), options.host, options.port)
        try:
            return subprocess.run(command, check=False).returncode  # noqa: S603 - our own interpreter and arguments
        except KeyboardInterrupt:
            return 0


def link(runs: Sequence[RunSummary], root: Path, folder: Path) -> None:
    """Put links to runs into a folder, since TensorBoard takes one folder and calls runs by their names below it."""
    for i, found in enumerate(runs):
        place = below(found.path, root)
        # No folders between: one of them could be a link to a run, and its own folder would get the next link.
        name = f"{i}_{found.path.absolute().name}" if place == found.path else "__".join(place.parts)
        (folder / name).symlink_to(found.path.absolute(), target_is_directory=True)


def tensorboard_command(folder: Path, host: str, port: int) -> list[str]:
    """What is started."""
    return [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", host, "--port", str(port)]


COMMANDS: dict[str, Command] = {
    "ls": ls,
    "compare": compare,
    "diff": diff,
    "report": report,
    "tensorboard": tensorboard,
}
