"""`cifargan train` in two processes: the same run, the same decisions, and what happens when one of them ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cifargan.errors import UserError
from cifargan.runs.checkpoint import CheckpointStore, load
from cifargan.runs.directory import RunDirectory
from cifargan.training.step import GANStep

Command = Callable[..., CompletedProcess[str]]
InProcesses = Callable[..., list[Any]]
Act = Callable[[int, int], None]  # (rank, step)
STEPS = 6
WEIGHTS = ("generator", "discriminator", "ema", "objective")


class Ended(NamedTuple):
    code: int
    stderr: str


@pytest.fixture
def settings(quick: tuple[str, ...]) -> tuple[str, ...]:
    """A short conditional run; its batch divides in two, its epoch ends on the way, LeCam's anchors move."""
    return (
        *quick,
        *("regularizer=lecam", "regularizer.lecam.start=2", "augment=diffaugment", "trainer.ema.decay=0.9"),
        *(f"trainer.steps={STEPS}", "trainer.sample_every=3", "trainer.checkpoint_every=2", "trainer.log_every=2"),
        *("trainer.batch_size=16", "trainer.speed=plain", "hydra.run.dir=run"),
    )


def trained(invoke: Command, folder: Path, overrides: tuple[str, ...], act: Act | None = None) -> Ended:
    """`cifargan train` in this process; `act` is called before each round."""
    iterate = GANStep.iterate

    def spied(gan: GANStep) -> Any:
        if act is not None:
            act(dist.get_rank() if dist.is_initialized() else 0, gan.step)
        return iterate(gan)

    with patch.object(GANStep, "iterate", spied):
        ran = invoke(folder, "train", *overrides)
    return Ended(ran.returncode, ran.stderr)


def state_of(folder: Path) -> dict[str, Any]:
    return load(CheckpointStore(folder / "run" / "checkpoints").steps()[-1])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(one: Path, other: Path) -> None:
    a, b = state_of(one), state_of(other)
    for part in WEIGHTS:
        torch.testing.assert_close(b[part], a[part], rtol=0, atol=1e-5)
    assert torch.equal(a["rng"]["cpu"], b["rng"]["cpu"])
    assert (a["step"], a["stream"]["images_seen"]) == (b["step"], b["stream"]["images_seen"])
    torch.testing.assert_close(b["running"]["sums"], a["running"]["sums"], rtol=0, atol=1e-5)
    for here, there in zip(lines(one), lines(other), strict=True):
        for name in here:
            if not name.startswith(("time", "speed")):
                assert there[name] == pytest.approx(here[name], abs=2e-5), name


def test_two_processes_leave_the_run_that_one_leaves(
    in_processes: InProcesses, invoke: Command, settings: tuple[str, ...], tmp_path: Path
) -> None:
    assert trained(invoke, tmp_path / "one", settings).code == 0
    first, second = in_processes(2, trained, invoke, tmp_path / "two", settings)
    assert (first.code, second) == (0, (0, ""))  # one of them speaks
    names = [
        {re.sub(r"tfevents.*", "", str(path.relative_to(folder))) for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "one" / "run", tmp_path / "two" / "run")
    ]
    assert names[0] == names[1]
    assert_same_training(tmp_path / "one", tmp_path / "two")
    (session,) = json.loads((tmp_path / "two" / "run" / "provenance.json").read_text())["sessions"]
    assert session["processes"] == 2
    assert "2 processes, each cpu" in first.stderr


def test_a_run_goes_on_in_another_number_of_processes(
    in_processes: InProcesses, invoke: Command, settings: tuple[str, ...], tmp_path: Path
) -> None:
    assert trained(invoke, tmp_path / "one", settings).code == 0
    folder = tmp_path / "mixed"
    in_processes(2, trained, invoke, folder, (*settings, "trainer.steps=3"))
    assert trained(invoke, folder, ("resume=run", "trainer.steps=4")).code == 0
    assert [ended.code for ended in in_processes(4, trained, invoke, folder, ("resume=run", "trainer.steps=6"))] == [
        0
    ] * 4
    a, b = state_of(tmp_path / "one"), state_of(folder)
    for part in WEIGHTS:
        torch.testing.assert_close(b[part], a[part], rtol=0, atol=1e-5)


def test_a_signal_to_one_process_stops_both_at_the_same_step(
    in_processes: InProcesses, invoke: Command, settings: tuple[str, ...], tmp_path: Path
) -> None:
    def act(rank: int, step: int) -> None:
        if (rank, step) == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)

    first, second = in_processes(2, trained, invoke, tmp_path, settings, act)
    assert (first.code, second.code) == (143, 143)
    assert "stopped at step 3, checkpoint written" in first.stderr
    assert state_of(tmp_path)["step"] == 3
    assert RunDirectory(tmp_path / "run").status()["status"] == "interrupted"


@pytest.mark.parametrize("what", ["stop", "rollback"])
def test_divergence_in_one_process_is_that_of_the_run(
    in_processes: InProcesses, invoke: Command, settings: tuple[str, ...], tmp_path: Path, what: str
) -> None:
    seen: list[int] = []

    def act(rank: int, step: int) -> None:
        seen.append(step)

    generator_step = GANStep.generator_step

    def broken(gan: GANStep) -> dict[str, Tensor]:
        metrics = generator_step(gan)
        if (dist.get_rank(), gan.step) == (1, 3) and seen.count(3) == 1:
            # What one process sees on its part of the batch; the weights stay whole.
            metrics["loss/generator"] = torch.tensor(torch.nan)
        return metrics

    with patch.object(GANStep, "generator_step", broken):
        overrides = (*settings, f"trainer.on_divergence={what}")
        first, second = in_processes(2, trained, invoke, tmp_path, overrides, act)
    if what == "stop":
        assert (first.code, second) == (2, (2, ""))
        assert "loss/generator is not finite since step 4: the run has diverged" in first.stderr
        assert state_of(tmp_path)["step"] == 2
    else:
        assert (first.code, second) == (0, (0, ""))
        assert "back to step 2 with new noise and learning rates x 0.5" in first.stderr
        assert (state_of(tmp_path)["step"], state_of(tmp_path)["rollbacks"]) == (STEPS, 1)


def test_an_error_of_the_first_process_is_told_once_and_ends_all(
    in_processes: InProcesses, invoke: Command, settings: tuple[str, ...], tmp_path: Path
) -> None:
    assert trained(invoke, tmp_path, settings).code == 0
    first, second = in_processes(2, trained, invoke, tmp_path, settings)
    assert (first.code, second) == (2, (2, ""))
    assert "already holds a run" in first.stderr


def test_an_error_of_another_process_stands_in_the_log(
    in_processes: InProcesses, invoke: Command, settings: tuple[str, ...], tmp_path: Path
) -> None:
    def act(rank: int, step: int) -> None:
        if (rank, step) == (1, 3):
            raise ArithmeticError("one and one is three")

    first, second = in_processes(2, trained, invoke, tmp_path, settings, act)
    assert (first.code, second.code) == (2, 1)
    assert "another process of this run cannot be reached any more" in first.stderr
    log = (tmp_path / "run" / "train.log").read_text()
    assert "in act" in log
    assert "ArithmeticError: one and one is three" in log
    assert state_of(tmp_path)["step"] == 2
    assert trained(invoke, tmp_path, ("resume=run",)).code == 0


def test_a_checkpoint_that_cannot_be_written_parts_no_processes(
    in_processes: InProcesses, invoke: Command, settings: tuple[str, ...], tmp_path: Path
) -> None:
    save = CheckpointStore.save

    def refused(store: CheckpointStore, state: dict[str, Any], step: int, *, best: bool = False) -> Path:
        if step == 4:
            raise UserError("no space")
        return save(store, state, step, best=best)

    with patch.object(CheckpointStore, "save", refused):
        first, second = in_processes(2, trained, invoke, tmp_path, settings)
    assert (first.code, second) == (0, (0, ""))
    assert "step 4: no space; the last good checkpoint is" in first.stderr
    assert state_of(tmp_path)["step"] == STEPS


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.batch_size=15", "does not divide into 2 devices: choose a multiple of 2"),
        ("trainer.accumulate=auto", "works on one device alone"),
        ("trainer.graph=true", "trainer.graph=True works on one device alone"),
        ("trainer.compile=default", "trainer.compile=default works on one device alone"),
    ],
)
def test_what_several_processes_cannot_do(
    in_processes: InProcesses, invoke: Command, settings: tuple[str, ...], tmp_path: Path, override: str, message: str
) -> None:
    first, second = in_processes(2, trained, invoke, tmp_path, (*settings, override))
    assert (first.code, second.code) == (2, 2)
    assert message in first.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loss=hing", "loss=hing: no such loss; did you mean hinge?"),  # which Hydra finds
        ("trainer.stesp=3", "trainer.stesp: "),
        ("--cgf", "--cgf: no such option"),
        ("hydra/launcher=joblib", "launches the jobs of a sweep"),
    ],
)
def test_a_typo_is_told_once(
    in_processes: InProcesses, invoke: Command, settings: tuple[str, ...], tmp_path: Path, word: str, message: str
) -> None:
    first, second = in_processes(2, trained, invoke, tmp_path, (*settings, word))
    assert (first.code, second) == (2, (2, ""))
    assert message in first.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.devices=0", "trainer.devices=0: must be at least 1"),
        ("trainer.devices=3", "trainer.batch_size=16 does not divide into 3 devices"),
    ],
)
def test_numbers_of_devices(
    invoke: Command, settings: tuple[str, ...], tmp_path: Path, override: str, message: str
) -> None:
    ended = trained(invoke, tmp_path, (*settings, override))
    assert ended.code == 2
    assert message in ended.stderr


def started(folder: Path, *command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CIFARGAN_CACHE": str(folder / ".cache")}
    environment |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return subprocess.Popen(
        [sys.executable, "-m", *command], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )


def wait_for_step(folder: Path, step: int) -> None:
    ended = time.monotonic() + 120
    while not (folder / "run" / "metrics.jsonl").exists() or not any(line["step"] >= step for line in lines(folder)):
        assert time.monotonic() < ended, "no such step"
        time.sleep(0.05)


def worker_of(folder: Path) -> int:
    """The process that writes the run."""
    return int(json.loads((folder / "run" / "status.json").read_text())["pid"])


def descendants(pid: int) -> list[int]:
    """The processes below one, those that hold a process group's sockets among them."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in children.read_text().split()] if children.exists() else []
    return [*found, *(below for child in found for below in descendants(child))]


LONG = ("trainer.steps=100000", "trainer.log_every=2", "trainer.checkpoint_every=2", "trainer.sample_every=100000")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_killed_process_ends_the_others_and_the_run_goes_on(
    invoke: Command, settings: tuple[str, ...], tmp_path: Path
) -> None:
    run = started(tmp_path, "cifargan", "train", *settings, *LONG, "trainer.devices=2")
    wait_for_step(tmp_path, 4)
    leader = worker_of(tmp_path)
    siblings = [pid for pid in descendants(run.pid) if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    (other,) = (pid for pid in siblings if pid != leader)
    os.kill(other, signal.SIGKILL)
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 2
    assert re.search(r"error: process 1 of 2 \(pid \d+\) was ended by SIGKILL, and the others with it", stderr)
    assert "Traceback" not in stderr
    assert "was ended by SIGKILL" in (tmp_path / "run" / "train.log").read_text()
    reached = state_of(tmp_path)["step"]
    assert trained(invoke, tmp_path, ("resume=run", "trainer.devices=1", f"trainer.steps={reached + 2}")).code == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_signal_to_the_parent_saves_and_stops(settings: tuple[str, ...], tmp_path: Path) -> None:
    run = started(tmp_path, "cifargan", "train", *settings, *LONG, "trainer.devices=2")
    wait_for_step(tmp_path, 4)
    run.send_signal(signal.SIGINT)
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "resume with: cifargan train resume=" in stderr
    status = RunDirectory(tmp_path / "run").status()
    assert (status["status"], status["step"]) == ("interrupted", state_of(tmp_path)["step"])
    assert status["step"] == lines(tmp_path)[-1]["step"] or status["step"] % 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_torchrun_starts_a_run_anew_where_a_process_died(settings: tuple[str, ...], tmp_path: Path) -> None:
    torchrun = ("torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", "--master-addr=127.0.0.1")
    own = tuple(override for override in settings if override != "hydra.run.dir=run")
    root = tmp_path / "outputs" / "cdcgan"
    run = started(tmp_path, *torchrun, "-m", "cifargan", "train", *own, *LONG, "trainer.steps=60")
    ended = time.monotonic() + 240
    while not any(root.glob("*/checkpoints/step_000000004.safetensors")):
        assert time.monotonic() < ended
        time.sleep(0.05)
    (directory,) = root.iterdir()
    first = int(json.loads((directory / "status.json").read_text())["pid"])
    os.kill(first, signal.SIGKILL)
    _, stderr = run.communicate(timeout=400)
    assert run.returncode == 0, stderr
    assert list(root.iterdir()) == [directory]
    assert "resuming from step" in (directory / "train.log").read_text()
    assert RunDirectory(directory).status()["status"] == "finished"
    assert len(json.loads((directory / "provenance.json").read_text())["sessions"]) == 2
