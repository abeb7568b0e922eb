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
from cifargan.cli.launching import beside_others, free_device, hand_back, require_launcher
from cifargan.cli.sweep import FILE, Sweep, folder_of
from cifargan.cli.train import Outcome
from cifargan.cli.train import job as train_job
from cifargan.config_files import LAUNCHER, options
from cifargan.entry import Result
from cifargan.errors import UserError
from cifargan.runs.directory import RunDirectory
from cifargan.schema import conf_dir
from cifargan.training.interruption import NOTICES, InterruptedRunError

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
    launcher()  # loads plugins, which register in the store
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
    hand_back(notice)  # the launcher will not have it again, so the sweep continues with what there is
    assert got == [notice] * 2
    hand_back(signal.SIGTERM)  # nobody's notice, but this job's end: pytest's process would not survive it
    signal.signal(notice, signal.SIG_DFL)
    hand_back(notice)


def running(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """Let Hydra seem to run the job of these overrides."""
    config = OmegaConf.create({"overrides": {"task": list(overrides)}})
    monkeypatch.setattr(sweep_module, "HydraConfig", SimpleNamespace(get=lambda: config))


@pytest.mark.usefixtures("own_signals")
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (None, "finished"),
        (InterruptedRunError(signal.SIGTERM, "stopped at step 1"), "stopped at step 1"),
        (UserError("no \x1b"), r"no \x1b"),
        (KeyError("x"), "failed: KeyError('x'), see train.log"),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_a_line_about_each_job_and_a_signal_to_one(
    error: Exception | None,
    words: str,
    apart: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    running(monkeypatch, "seed=1")
    result = Result(tmp_path, 1, {}) if error is None else None
    sweep = Sweep(lambda *_: Outcome(tmp_path, [], result, error), [], tmp_path, apart=apart)
    sweep(OmegaConf.create({"resume": None, "device": "cpu", "trainer": {}}))
    # In the process of the sweep, a signal to the job is one to the sweep.
    assert sweep.stop_signal == (signal.SIGTERM if hasattr(error, "signal") and not apart else None)
    line = capsys.readouterr().err
    assert (line.startswith(f"job {folder_of(['seed=1'])}: ") and words in line) if apart else line == ""


def test_a_job_resumes_or_returns_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running(monkeypatch, "seed=1")
    run = RunDirectory(tmp_path / folder_of(["seed=1"]))
    seen = []

    def train(config: DictConfig, command: list[str], folder: Path) -> Outcome:
        seen.append(config.resume)
        assert folder == run.path
        (folder / "provenance.json").touch()
        return Outcome(folder, [], Result(folder, 1, {}), None)

    sweep = Sweep(train, [], tmp_path)
    for _ in range(2):
        sweep(OmegaConf.create({"resume": None}))
    run.set_status("finished", step=1)
    sweep(OmegaConf.create({"resume": None}))
    run.set_status("interrupted", step=1)
    with run.lock():
        run.set_status("running", step=1)
        sweep(OmegaConf.create({"resume": None}))
    sweep.stop(signal.SIGINT)
    sweep(OmegaConf.create({"resume": None}))
    assert seen == [None, str(run.path)]


def test_jobs_are_spread_over_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with ExitStack() as first, ExitStack() as second:
        assert first.enter_context(free_device(tmp_path, "auto")) == "cuda:0"
        assert second.enter_context(free_device(tmp_path, "auto")) == "cuda:1"
        with free_device(tmp_path, "auto") as shared:
            assert shared in ("cuda:0", "cuda:1")
        with free_device(tmp_path, "cpu") as chosen:
            assert chosen == "cpu"
        first.close()
        with free_device(tmp_path, "auto") as free:
            assert free == "cuda:0"


@pytest.mark.parametrize("count", [0, 1])
def test_one_gpu_is_left_to_auto(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with free_device(tmp_path, "auto") as device:
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
    sweep = Sweep(train_job, [], tmp_path, apart=True)
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


@pytest.fixture
def few_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread a process, and no worker left behind."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    import_module("joblib.externals.loky").get_reusable_executor().shutdown(wait=True)


@pytest.mark.slow
@pytest.mark.usefixtures("few_threads")
@pytest.mark.parametrize(
    ("launcher", "seeds"), [(("joblib", "hydra.launcher.n_jobs=2"), "1,2"), (("submitit_local",), "1")]
)
def test_jobs_in_other_processes(
    launcher: tuple[str, ...], seeds: str, command: Command, quick: tuple[str, ...], tmp_path: Path
) -> None:
    options = (f"hydra/launcher={launcher[0]}", *launcher[1:], "hydra.sweep.dir=sweep")
    ran = command("train", "-m", *quick, "trainer.batch_size=0,4", f"seed={seeds}", *options)
    assert ran.returncode == 2, ran.stderr
    n = len(seeds.split(","))
    assert ran.stdout.splitlines()[-1] == f"{n} of {2 * n} jobs finished, in {tmp_path / 'sweep'}"
    assert ran.stdout.count("trainer.batch_size=0: must be at least 1") == n
    jobs = json.loads((tmp_path / "sweep" / FILE).read_text())["jobs"]
    assert [job["status"] for job in jobs] == ["failed"] * n + ["finished"] * n
    for job in jobs[n:]:
        folder = tmp_path / "sweep" / job["folder"]
        log = (folder / "train.log").read_text()
        assert log.count("finished: ") == log.count("step 2/2") == 1
        (session,) = json.loads((folder / "provenance.json").read_text())["sessions"]
        assert session["command"][:2] == ["cifargan train", "--multirun"]
    assert "step 2/2" not in ran.stderr + ran.stdout  # the terminal has no job's log
