"""`cifargan runs`: the list, differences, the page, TensorBoard, and errors."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from cifargan.cli import runs

Command = Callable[..., CompletedProcess[str]]


def scored(run: Path, value: float, **changes: Any) -> None:
    """Give a run one score after its training."""
    record = {
        "metric": "fid",
        "value": value,
        "n": 50,
        "images": 50,
        "subject": str(run),
        "step": 2,
        "class_name": None,
        "reference_name": "digits",
        "reference_split": "train",
        "reference_fingerprint": "cd0f",
        "extractor": "inception",
        "weights": "ema",
        "batch_norm": "standing",
        **changes,
    }
    (run / "evaluation.json").write_text(json.dumps({"records": [record]}))


@pytest.fixture
def other(run: Path) -> Path:
    """A second run, which says that it was trained with another learning rate."""
    copy = Path(shutil.copytree(run, run.parent / "other"))
    config = copy / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.0002", "lr: 0.5", 1))
    return copy


def test_a_real_run_is_listed(command: Command, run: Path) -> None:
    scored(run, 12.5)
    done = command("runs")
    assert done.returncode == 0, done.stderr
    head, line, *rest = done.stdout.splitlines()
    assert head.split() == ["run", "status", "age", "step", "score", "images/s", "device"]
    assert line.startswith("cdcgan/run  finished  ")
    assert "  2/2   12.50  a  " in line
    assert rest[-1] == (
        "a  fid: 50 images, against digits train (?, cd0f), inception, standing batch norm, ema weights, no truncation"
    )


def test_the_list_as_json(command: Command, run: Path) -> None:
    scored(run, 12.5)
    (listed,) = json.loads(command("runs", "ls", "--json").stdout)
    assert (listed["name"], listed["status"], listed["headline"]["value"]) == ("cdcgan", "finished", 12.5)


def test_filters_reach_the_list(command: Command, run: Path, other: Path) -> None:
    filters = ("--where", "optimizer.generator.lr=0.5", "--status", "finished", "--status", "failed", "--name", "cdc")
    done = command("runs", "ls", *filters)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["run", "cdcgan/other"]


def test_only_what_differs_is_shown(command: Command, run: Path, other: Path) -> None:
    done = command("runs", "diff", "cdcgan/run", "cdcgan/other")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["setting", "cdcgan/run", "cdcgan/other"],
        ["optimizer.generator.lr", "0.0002", "0.5"],
    ]
    assert command("runs", "diff", str(run), str(run)).stdout == "no setting differs\n"


def test_the_page_of_a_real_run(command: Command, run: Path) -> None:
    for truncation in ((), ("--truncation", "0.5")):
        sampled = command("sample", "cdcgan/run", "--per-class", "1", "--device", "cpu", *truncation)
        assert sampled.returncode == 0, sampled.stderr
    done = command("runs", "report", "--out", "page.html")
    assert (done.returncode, done.stdout) == (0, "page.html\n"), done.stderr
    page = (run.parents[2] / "page.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp") == 2 + len(list((run / "samples").glob("step_*.png")))
    assert "no truncation, step 2" in page
    assert "truncation 0.5, step 2" in page
    assert "<li>7</li>" in page  # a row of the grid is a class, and its name is beside it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lst"], "cifargan runs lst: no such command; did you mean ls?"),
        (["ls", "--sotr", "score"], "unrecognized arguments: --sotr score; did you mean --sort"),
        (["ls", "--status", "done"], "--status: invalid choice: 'done' (choose from"),
        (["ls", "--sort", "scores"], "--sort: invalid choice: 'scores' (choose from"),
        (["ls", "--root", "nowhere"], "there is no run under nowhere"),
        (["report", "cdcgan/rnu"], "there is no run at cdcgan/rnu"),
        (["diff", "cdcgan/run"], "diff takes two or more runs"),
        (["report", "--name", "nothing"], "no run is left after these filters"),
        (["tensorboard", "--port", "http"], "http is no whole number"),
    ],
)
def test_what_goes_wrong_is_one_line(command: Command, run: Path, arguments: list[str], message: str) -> None:
    done = command("runs", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line


def test_listing_takes_no_torch(run: Path, tmp_path: Path) -> None:
    program = "import sys; from cifargan.cli import main; sys.exit(main(['runs']) or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", program], cwd=tmp_path, check=False).returncode == 0


def test_help_names_every_command(command: Command) -> None:
    done = command("runs", "--help")
    assert done.returncode == 0
    assert all(f"cifargan runs {name}" in done.stdout for name in runs.COMMANDS)


def test_tensorboard_is_for_this_machine_alone(command: Command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    seen: list[dict[str, str]] = []

    def start(arguments: list[str], **_: Any) -> CompletedProcess[str]:
        started.append(arguments)
        folder = Path(arguments[arguments.index("--logdir") + 1])
        seen.append({path.name: str(path.resolve()) for path in folder.iterdir()})
        return CompletedProcess(arguments, 0)

    monkeypatch.setattr(subprocess, "run", start)
    assert command("runs", "tensorboard").returncode == 0
    assert command("runs", "tensorboard", str(run), "--host", "0.0.0.0", "--port", "7000").returncode == 0
    hosts = [arguments[arguments.index("--host") + 1] for arguments in started]
    assert hosts == ["localhost", "0.0.0.0"]
    assert "--bind_all" not in started[0]
    assert started[1][-2:] == ["--port", "7000"]
    assert [list(folder.values()) for folder in seen] == [[str(run)], [str(run)]]
    assert list(seen[0]) == ["cdcgan__run"]


def test_a_run_inside_a_run_is_linked_beside_it(command: Command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is written into either."""
    shutil.copytree(run, run / "inner")
    before = sorted(run.rglob("*"))
    names: list[str] = []

    def start(arguments: list[str], **_: Any) -> CompletedProcess[str]:
        names.extend(sorted(path.name for path in Path(arguments[4]).iterdir()))
        return CompletedProcess(arguments, 0)

    monkeypatch.setattr(subprocess, "run", start)
    assert command("runs", "tensorboard").returncode == 0
    assert names == ["cdcgan__run", "cdcgan__run__inner"]
    assert sorted(run.rglob("*")) == before


@pytest.mark.slow
def test_a_real_tensorboard_answers_on_loopback(run: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "cifargan", "runs", "tensorboard", "--port", str(port)],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        names: list[str] = []
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs", timeout=5) as answer:
                    names = json.load(answer)
            except OSError:
                pass
            if names:
                break
            time.sleep(0.2)
        assert names == ["cdcgan__run"]
    finally:
        os.killpg(server.pid, 15)
        server.wait()
