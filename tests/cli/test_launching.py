"""Jobs beside one another: launchers, GPUs, terminals, signals."""

import copy
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
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from cifargan.cli import launching
from cifargan.cli import sweep as sweep_module
from cifargan.cli.launching import beside_others, cuda_place, hand_back, line_about, require_launcher
from cifargan.cli.sweep import Sweep
from cifargan.cli.train import Outcome, job
from cifargan.config_files import LAUNCHER, options
from cifargan.errors import UserError
from cifargan.runs.directory import RunDirectory
from cifargan.schema import conf_dir
from cifargan.training.interruption import NOTICES, InterruptedRunError
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
        ("slurm", "hydra/launcher=slurm: that launcher is not installed: pip install 'cifargan[submitit]'"),
        ("ray_gpu", "hydra/launcher=ray_gpu: that launcher is not installed: pip install 'cifargan[ray]'"),
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


def test_a_launcher_of_ones_own_may_be_called_much_like_another() -> None:
    require_launcher(["hydra/launcher=my_slurm"], sweep=True, own=True)
    with pytest.raises(UserError, match=r"no such launcher; did you mean slurm or submitit_slurm\?"):
        require_launcher(["hydra/launcher=my_slurm"], sweep=True)


def test_each_shipped_launcher_is_one_that_says_what_it_lacks() -> None:
    assert set(options(LAUNCHER)) <= set(launching.EXTRAS)


def launcher(*overrides: str) -> dict[str, Any]:
    """What Hydra hands to a launcher."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = compose("train", list(overrides), return_hydra_config=True)
    settings = OmegaConf.to_container(config.hydra.launcher)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def test_the_shipped_slurm_launcher_is_submitits_and_goes_on_by_itself() -> None:
    given = launcher("hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=60")
    plain = launcher("hydra/launcher=submitit_slurm")
    assert given.keys() == plain.keys()  # so that none of its settings is misspelt
    assert given["_target_"] == plain["_target_"]
    assert (given["partition"], given["timeout_min"], given["gpus_per_node"]) == ("gpu", 60, 1)
    assert given["max_num_timeout"] > 0 == plain["max_num_timeout"]


def test_the_shipped_ray_launcher_asks_for_a_gpu_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the schema of Ray's launcher, which cannot be installed beside joblib's."""
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", copy.deepcopy(store.repo))
    schema = {"_target_": "RayLauncher", "ray": {"init": {"address": None}, "remote": {}}}
    store.store(group=LAUNCHER, name="ray", node=schema, provider="test")
    given = launcher("hydra/launcher=ray_gpu", "hydra.launcher.ray.remote.num_cpus=2")
    assert given == {**schema, "ray": {"init": {"address": None}, "remote": {"num_gpus": 1, "num_cpus": 2}}}


@pytest.fixture
def notice() -> Iterator[signal.Signals]:
    before = signal.getsignal(signal.SIGUSR2)
    yield signal.SIGUSR2
    signal.signal(signal.SIGUSR2, before)


@pytest.mark.skipif(not NOTICES, reason="no scheduler's signals here")
def test_a_notice_goes_back_to_the_launcher_once_it_was_heeded(notice: signal.Signals) -> None:
    got: list[int] = []

    def as_submitit_does(number: int, frame: FrameType | None) -> None:
        got.append(number)
        raise SystemExit(-1) if len(got) == 1 else RuntimeError("Job not requeued because: timed-out too many times.")

    signal.signal(notice, as_submitit_does)
    with pytest.raises(SystemExit):
        hand_back(notice)
    hand_back(notice)  # the launcher will not have it again, so the sweep goes on with what there is
    assert got == [notice] * 2
    hand_back(signal.SIGTERM)  # nobody's notice, but this job's end: pytest's process would not survive it
    signal.signal(notice, signal.SIG_DFL)
    hand_back(notice)


@pytest.mark.usefixtures("own_signals")
@pytest.mark.parametrize("apart", [False, True])
def test_a_signal_to_one_job_ends_the_sweep_only_where_it_is_the_sweeps_process(
    apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0").mkdir()
    monkeypatch.setattr(sweep_module, "HydraConfig", running_in(tmp_path / "0"))
    error = InterruptedRunError(signal.SIGTERM, "stopped at step 1")
    sweep = Sweep(
        lambda *_: Outcome(tmp_path / "0", [], None, error), [], resume=False, directory=tmp_path, apart=apart
    )
    sweep(OmegaConf.create({"resume": None, "device": "cpu", "trainer": {}}))
    assert sweep.stop_signal == (None if apart else signal.SIGTERM)
    assert capsys.readouterr().err == ("job 0 stopped at step 1\n" if apart else "")


def test_a_job_that_is_started_once_more_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path / "0")
    run.path.mkdir()
    monkeypatch.setattr(sweep_module, "HydraConfig", running_in(run.path))
    seen = []

    def train(config: DictConfig, command: list[str]) -> Outcome:
        seen.append(config.resume)
        (run.path / "provenance.json").touch()
        return Outcome(run.path, [], Result(1, None, None), None)

    sweep = Sweep(train, [], resume=False, directory=tmp_path)
    for resume in (None, None, "elsewhere"):
        sweep(OmegaConf.create({"resume": resume}))
    assert seen == [None, str(run.path), "elsewhere"]


def running_in(folder: Path) -> SimpleNamespace:
    """HydraConfig, in a job whose folder this is."""
    return SimpleNamespace(get=lambda: OmegaConf.create({"runtime": {"output_dir": str(folder)}}))


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
