"""`cifargan runs`: list, compare and show the runs under `outputs/`."""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cifargan.cli.options import Parser, count
from cifargan.cli.tables import aligned
from cifargan.errors import UserError, did_you_mean
from cifargan.runs.directory import find_run
from cifargan.runs.listing import SORTS, as_json, below, differences, run_table, select, shown_path
from cifargan.runs.read import STATUSES, RunSummary, config_of

HELP = """cifargan runs ls [options]             every run: status, age, step, score with protocol, speed
cifargan runs diff RUN RUN ...         the settings in which runs differ
cifargan runs report [RUN ...]         one HTML page: scores, curves, pictures, settings
cifargan runs tensorboard [RUN ...]    TensorBoard on these runs, for this machine alone

RUN is a run's folder, as it is or below --root; `latest` is the newest.
`cifargan runs COMMAND --help` shows its options.
"""


def run(arguments: list[str]) -> int:
    """Call one of the commands; `ls` if none is given."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    name, rest = (arguments[0], arguments[1:]) if arguments and not arguments[0].startswith("-") else ("ls", arguments)
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f"; choose from {', '.join(COMMANDS)}"
        raise UserError(f"cifargan runs {name}: no such command{hint}")
    return COMMANDS[name](rest)


def _parser(name: str, description: str, *, runs: str | None = None, filters: bool = False) -> argparse.ArgumentParser:
    """A parser with the options that commands share.

    Args:
        name: the command.
        description: what it does.
        runs: how many runs it takes, as `nargs`; None for none.
        filters: whether it takes the filters of `ls`.
    """
    p = Parser(prog=f"cifargan runs {name}", description=description)
    p.set_defaults(runs=[], status=[], name=None, where=[], sort=None)
    if runs:
        p.add_argument("runs", nargs=runs, metavar="RUN", help="folder of a run; default: every run under --root")
    p.add_argument("--root", type=Path, default=Path("outputs"), help="where runs are (default: outputs)")
    if filters:
        p.add_argument("--status", action="append", choices=STATUSES, help="only runs of this status; may be repeated")
        p.add_argument("--name", metavar="TEXT", help="part of a run's name or path; * stands for any text")
        p.add_argument(
            "--where", action="append", metavar="KEY=VALUE", help="a setting, such as loss.name=hinge; may be repeated"
        )
        p.add_argument("--sort", choices=SORTS, help="default: as named, or by start")
    return p


def _selected(options: argparse.Namespace) -> list[RunSummary]:
    return select(
        options.root,
        options.runs,
        status=options.status,
        name=options.name,
        where=options.where,
        sort=options.sort,
    )


def ls(arguments: list[str]) -> int:
    """List runs."""
    p = _parser("ls", "Every run: status, age, step, score, images per second, device.", filters=True)
    p.add_argument("--json", action="store_true", help="print everything that is known, as JSON")
    options = p.parse_args(arguments)
    runs = _selected(options)
    if options.json:
        print(as_json(runs))
        return 0
    rows, footnotes = run_table(runs, options.root)
    print("\n".join(aligned(rows)))
    if footnotes:
        print("\nonly scores with the same letter can be ranked:" if len(footnotes) > 1 else "")
        print("\n".join(footnotes))
    return 0


def diff(arguments: list[str]) -> int:
    """Compare configurations."""
    p = _parser("diff", "The settings in which runs differ.", runs="+")
    options = p.parse_args(arguments)
    if len(options.runs) < 2:
        raise UserError("cifargan runs diff takes two or more runs")
    found = [find_run(name, options.root) for name in options.runs]
    configs = [config_of(run_found) for run_found in found]
    for run_found, config in zip(found, configs, strict=True):
        if not config:
            raise UserError(f"{run_found.path}: .hydra/config.yaml is missing or cannot be read")
    rows = differences(configs)
    names = [shown_path(run_found.path, options.root) for run_found in found]
    print("\n".join(aligned([["setting", *names], *rows])) if rows else "no setting differs")
    return 0


def report(arguments: list[str]) -> int:
    """Write a page about runs."""
    p = _parser("report", "One HTML file that needs nothing else.", runs="*", filters=True)
    p.add_argument("--out", type=Path, metavar="FILE", default=Path("report.html"), help="default: report.html")
    options = p.parse_args(arguments)
    # matplotlib takes a second to import.
    from cifargan.report.report import write_report

    write_report(_selected(options), options.out, root=options.root)
    print(options.out)
    return 0


def tensorboard(arguments: list[str]) -> int:
    """Run TensorBoard until Ctrl-C."""
    p = _parser("tensorboard", "TensorBoard on these runs.", runs="*")
    p.add_argument("--host", default="localhost", help="who may connect (default: localhost, this machine alone)")
    p.add_argument("--port", type=count, default=6006, help="default: 6006")
    options = p.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        link(_selected(options), options.root, Path(folder))
        command = ["-m", "tensorboard.main", "--logdir", folder, "--host", options.host, "--port", str(options.port)]
        try:
            return subprocess.run([sys.executable, *command], check=False).returncode  # noqa: S603 - our own arguments
        except KeyboardInterrupt:
            return 0


def link(runs: Sequence[RunSummary], root: Path, folder: Path) -> None:
    """Put links to runs into a folder: TensorBoard takes one folder and names runs by their paths below it."""
    for i, found in enumerate(runs):
        place = below(found.path, root)
        # No folders in between: a run inside a run would be linked into the outer one's own folder.
        name = f"{i}_{found.path.absolute().name}" if place == found.path else "__".join(place.parts)
        (folder / name).symlink_to(found.path.absolute(), target_is_directory=True)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "ls": ls,
    "diff": diff,
    "report": report,
    "tensorboard": tensorboard,
}
