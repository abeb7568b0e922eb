"""Each command in the documentation runs, or is checked up to where it would take long: names, options, settings."""

import contextlib
import itertools
import re
import runpy
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess
from typing import NamedTuple
from unittest.mock import patch

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from torch.distributed.run import get_args_parser

from cifargan import registry
from cifargan.entry import Result, Run

ROOT = Path(__file__).parents[2]
Invoke = Callable[..., CompletedProcess[str]]


class Desk(NamedTuple):
    """Where a command is run, and by what."""

    folder: Path
    invoke: Invoke
    files: dict[str, str]  # which the documentation shows in full


class ReachedError(BaseException):
    """A command reached the place where its test ends. Not an `Exception`, which the command line would report."""


def reach(*args: object, **settings: object) -> None:
    raise ReachedError


def in_full(desk: Desk, words: list[str]) -> None:
    """Run it."""
    small = ["--per-class", "2"] if words[1] == "sample" else []  # the last one counts
    ran = desk.invoke(desk.folder, *words[1:], *small)
    assert ran.returncode == 0, ran.stderr


def until(place: str) -> Callable[[Desk, list[str]], None]:
    """Run it until it calls a function; fail if it does not."""

    def run(desk: Desk, words: list[str]) -> None:
        with patch(place, reach), pytest.raises(ReachedError):
            print(desk.invoke(desk.folder, *words[1:]).stderr)

    return run


def composed(desk: Desk, words: list[str]) -> None:
    """Let `cifargan train` compose and check each job, and train nothing."""
    jobs: list[DictConfig] = []

    def keep(run: Run) -> Result:
        jobs.append(run.parts.config)
        return Result(run.directory.path, 0, {})

    sweeps = bool({"-m", "--multirun"} & {*words})
    launcher = [word for word in words if re.match(r"\+?hydra[./]launcher", word)]
    # Jobs that differ in the seed are composed alike: one is enough.
    rest = [re.sub(r"^(seed=\d+),.*", r"\1", word) for word in words[2:] if word not in (*launcher, "...")]
    if "resume=latest" in rest:
        # Without a run it starts one, which is the harder case: there is nothing to replay.
        shutil.rmtree(desk.folder / "outputs")
    with patch("cifargan.entry._claim_and_train", keep), patch("cifargan.entry._in_processes", keep):
        ran = desk.invoke(desk.folder, "train", *rest)
    assert "error: " not in ran.stderr, ran.stderr
    assert sweeps or ran.returncode == 0, ran.stderr
    assert len(jobs) == (len(list(combinations(rest))) if sweeps else 1)
    # The settings of a launcher that is not installed cannot be checked.
    if launcher and find_spec(f"hydra_plugins.hydra_{launcher[0].partition('=')[2].partition('_')[0]}_launcher"):
        shown = desk.invoke(desk.folder, "train", "--cfg", "hydra", *next(combinations(rest)), *launcher)
        assert shown.returncode == 0, shown.stderr


def combinations(words: list[str]) -> Iterator[list[str]]:
    """The jobs of a sweep, computed independently of the sweep."""
    parser = OverridesParser.create()
    overrides = [parser.parse_override(w) for w in words if not re.match("-|sweep=|hydra", w)]
    choices = [
        [f"{o.key_or_group}={value}" for value in o.sweep_string_iterator()] for o in overrides if o.is_sweep_override()
    ]
    fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
    return ([*fixed, *chosen] for chosen in itertools.product(*choices))


def exported(desk: Desk, words: list[str]) -> None:
    """Run it for safetensors; for the slower formats, up to the export."""
    (in_full if "safetensors" in words else until("cifargan.export.network.plain_generator"))(desk, words)


def torchrun(desk: Desk, words: list[str]) -> None:
    """Parse torchrun's options with its own parser, and compose the rest."""
    options = get_args_parser().parse_args(words[1:])
    assert (options.module, options.training_script) == (True, "cifargan")
    composed(desk, ["cifargan", *options.training_script_args])


def own_file(desk: Desk, words: list[str]) -> None:
    """Import a file that the documentation shows, and run the rest as `cifargan`."""
    for name, content in desk.files.items():
        (desk.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (desk.folder / name).write_text(content, encoding="utf-8")
    with contextlib.ExitStack() as stack:
        for known in (*registry.REGISTRIES, registry.METRICS):
            stack.enter_context(patch.dict(known))
        runpy.run_path(str(desk.folder / words[1]))
        how_to_run(["cifargan", *words[2:]])(desk, ["cifargan", *words[2:]])


def shell_script(desk: Desk, words: list[str]) -> None:
    """Check its syntax with bash; run nothing."""
    ran = subprocess.run(["bash", "-n", ROOT / words[1]], capture_output=True, text=True, check=False)
    assert (len(words), ran.returncode, ran.stderr) == (2, 0, "")


def as_it_is(desk: Desk, words: list[str]) -> None:
    """A command of another program: the pattern is the check."""


# Pattern of a command, and how it is run. The first match counts; a command without a match fails.
TABLE: dict[str, Callable[[Desk, list[str]], None]] = {
    r"cifargan train\b": composed,
    r"cifargan tune\b": until("cifargan.tuning.study.Study"),  # each choice has been composed and checked by then
    r"cifargan evaluate\b": until("cifargan.cli.evaluate.extractor_for"),
    r"cifargan export\b": exported,
    r"cifargan bench\b": until("cifargan.cli.bench.passed_gate"),
    r"cifargan data fetch\b": until("cifargan.data.cifar10.CIFAR10.load"),
    r"cifargan data (inspect|pack)\b": in_full,
    r"cifargan runs tensorboard\b": until("cifargan.cli.runs.link"),
    r"cifargan (runs|sample|ls|cat|cp|doctor|completion|--help|--version)\b": in_full,
    r"torchrun .*-m cifargan train\b": torchrun,
    r"python my_\w+\.py\b": own_file,
    r"bash scripts/\w+\.sh": shell_script,
    r"tensorboard --logdir outputs$": as_it_is,
    r"pip install\b": as_it_is,  # its extras: test_pages.py
}


def how_to_run(words: list[str]) -> Callable[[Desk, list[str]], None]:
    """The entry of the table for a command."""
    found = next((way for pattern, way in TABLE.items() if re.match(pattern, " ".join(words))), None)
    if found is None:
        pytest.fail(f"{' '.join(words)}: no line of the table in {Path(__file__).name} says how it is run")
    return found


def test_it_runs(
    words: list[str],
    world: Path,
    scored_run: Path,
    invoke: Invoke,
    named_blocks: Callable[[Path], dict[str, str]],
) -> None:
    # Runs that the page names exist.
    for word in words:
        key, _, value = word.rpartition("=")
        if key in ("", "resume", "init") and value.startswith("outputs/") and not (world / value).exists():
            shutil.copytree(scored_run, world / value)
    how_to_run(words)(Desk(world, invoke, named_blocks(ROOT / "docs" / "extending.md")), words)


def test_commands_are_found_in_blocks_of_every_kind(commands: Callable[[str], list[list[str]]]) -> None:
    text = (
        "`cifargan inline`\n```\ncifargan ls model    explained\nO='a=1 b=2'\ncifargan train $O \\\n  c='[3, 4]' # why\n"
        "```\n\n    A_B=1 python scripts/x.py  # indented\n\n```text\ncifargan output\n```\n```bash\n$ pip install .\nsrun cifargan ls\n```\n"
    )
    assert commands(text) == [
        ["cifargan", "ls", "model"],
        ["cifargan", "train", "a=1", "b=2", "c=[3, 4]"],
        ["python", "scripts/x.py"],
        ["pip", "install", "."],
        ["cifargan", "ls"],
    ]


@pytest.mark.parametrize(
    "command",
    ["cifargan train loss=hing", "cifargan train -m seed=1,2 trainer.step=5", "cifargan sample --per-klass 3",
     "cifargan bench bigan", "cifargan evaluate RUNN", "cifargan tune regularizer=choice(none,lecan)",
     "cifargan train seed=1 hydra/launcher=joblib hydra.launcher.n_job=2 -m", "cifargan sing", "make it so"],
)  # fmt: skip
def test_a_wrong_command_is_caught(command: str, world: Path, invoke: Invoke) -> None:
    words = command.split()
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        how_to_run(words)(Desk(world, invoke, {}), words)
