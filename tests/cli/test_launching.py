"""Jobs beside one another: launchers, GPUs, terminals, signals."""

import json
import logging
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from omegaconf import OmegaConf

from cifargan.cli import launching
from cifargan.cli.launching import beside_others, cuda_place, line_about, require_launcher
from cifargan.cli.sweep import Sweep
from cifargan.cli.train import Outcome, job
from cifargan.errors import UserError
from cifargan.training.interruption import InterruptedRunError
from cifargan.training.run_directory import RunDirectory
from cifargan.training.trainer import Result

Command = Callable[..., CompletedProcess[str]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("joblib", "hydra/launcher=joblib: that launcher is not installed: pip install 'cifargan[joblib]'"),
        (
            "submitit_slurm",
            "hydra/launcher=submitit_slurm: that launcher is not installed: pip install 'cifargan[submitit]'",
        ),
        ("joblob", "hydra/launcher=joblob: no such launcher; did you mean joblib?"),
    ],
)
def test_a_launcher_that_is_not_there(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "find_spec", lambda module: None)
    with pytest.raises(UserError) as caught:
        require_launcher(["seed=1,2", f"hydra/launcher={name}"], sweep=True)
    assert str(caught.value) == message


def test_a_launcher_takes_a_sweep() -> None:
    require_launcher(["hydra/launcher=basic", "hydra/launcher=joblib", "hydra/launcher=my_own"], sweep=True)
    with pytest.raises(UserError, match="launches the jobs of a sweep, which takes -m"):
        require_launcher(["hydra/launcher=joblib"], sweep=False)


def test_jobs_are_spread_over_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with ExitStack() as first, ExitStack() as second:
        assert first.enter_context(cuda_place(tmp_path, "auto")) == "cuda:0"
        assert second.enter_context(cuda_place(tmp_path, "auto")) == "cuda:1"
        with cuda_place(tmp_path, "auto") as shared:
            assert shared in ("cuda:0", "cuda:1")
        with cuda_place(tmp_path, "cpu") as chosen:
            assert chosen == "cpu"
        first.close()
        with cuda_place(tmp_path, "auto") as free:
            assert free == "cuda:0"


@pytest.mark.parametrize("count", [0, 1])
def test_one_gpu_is_left_to_auto(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with cuda_place(tmp_path, "auto") as device:
        assert device == "auto"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_signals")
def test_a_job_beside_others_is_silent_and_stopped_by_its_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launching, "POLL", 0.01)
    sweep = Sweep(job, [], resume=False, directory=tmp_path, apart=True)
    run = RunDirectory(tmp_path / "0")
    run.path.mkdir()
    got: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    lines: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(record.getMessage()))
    handlers = logging.getLogger().handlers[:]
    with beside_others(sweep, run, OmegaConf.create({"device": "auto", "trainer": {}})):
        logging.getLogger().addHandler(handler)  # as the run's log does
        print("a bar", file=sys.stderr)
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn("mind this", stacklevel=1)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        sweep.stop(signal.SIGINT)
        time.sleep(0.1)
        assert got == []  # it does not train yet, so that there is nobody to heed it
        run.set_status("running", step=0)
        end = time.monotonic() + 10
        while not got and time.monotonic() < end:
            time.sleep(0.01)
    assert got == [signal.SIGTERM]
    assert len(lines) == 1
    assert "mind this" in lines[0]
    assert logging.getLogger().handlers == handlers
    assert capsys.readouterr().err == ""


def test_the_line_about_a_job() -> None:
    path = Path("sweep/3")
    assert line_about(Outcome(path, [], Result(9, 6, 12.345), None)) == "job 3 finished: step 9, best score 12.35"
    assert line_about(Outcome(path, [], None, UserError("no \x1b"))) == r"job 3 failed: no \x1b"
    assert line_about(Outcome(path, [], None, InterruptedRunError(2, "stopped at step 1"))) == "job 3 stopped at step 1"
    assert "a bug in cifargan, see sweep/3/train.log: KeyError('x')" in line_about(
        Outcome(path, [], None, KeyError("x"))
    )


@pytest.fixture
def few_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread a process, and no worker left behind."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    import_module("joblib.externals.loky").get_reusable_executor().shutdown(wait=True)


@pytest.mark.slow
@pytest.mark.usefixtures("few_threads")
@pytest.mark.parametrize("launcher", [("joblib", "hydra.launcher.n_jobs=2"), ("submitit_local",)])
def test_six_jobs_in_other_processes(
    launcher: tuple[str, ...], command: Command, quick: tuple[str, ...], tmp_path: Path
) -> None:
    options = (f"hydra/launcher={launcher[0]}", *launcher[1:], "hydra.sweep.dir=sweep")
    ran = command("train", "-m", *quick, "trainer.batch_size=0,4,2", "seed=1,2", *options)
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout.splitlines()[-1] == f"4 of 6 jobs finished, in {tmp_path / 'sweep'}"
    assert ran.stdout.count("trainer.batch_size=0: must be at least 1") == 2
    jobs = json.loads((tmp_path / "sweep" / "summary.json").read_text())["jobs"]
    assert [job["status"] for job in jobs] == ["failed"] * 2 + ["finished"] * 4
    for number in range(2, 6):
        log = (tmp_path / "sweep" / str(number) / "train.log").read_text()
        assert log.count("finished: ") == log.count("step 2/2") == 1
        (session,) = json.loads((tmp_path / "sweep" / str(number) / "provenance.json").read_text())["sessions"]
        assert session["command"][:2] == ["cifargan train", "-m"]
    # The terminal is not where the jobs talk.
    assert ran.stderr.count("\n") == 1
