"""What more than one folder of tests needs: the command line in this process, and the shipped configuration."""

import contextlib
import importlib.util
import io
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any
from unittest.mock import patch

import hydra
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from cifargan.cli import main
from cifargan.config import build_data, plain
from cifargan.data.sources import ImageSet
from cifargan.runs.directory import RunDirectory
from cifargan.schema import conf_dir
from cifargan.train import build_trainer
from cifargan.training.interruption import HANGUPS, put_back
from cifargan.training.trainer import Trainer

PATIENCE = 120.0  # s that processes may take before they count as hanging


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep out of the user's cache."""
    monkeypatch.setenv("CIFARGAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def own_log_level() -> Iterator[None]:
    """Leave the root logger as loud as it was: `caplog` would catch more in whatever test comes next."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


@pytest.fixture(scope="module")
def script(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The script that a test file is about, as a module: `scripts/NAME.py` for `tests/test_NAME.py`."""
    name = Path(str(request.path)).stem.removeprefix("test_")
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@contextlib.contextmanager
def _own_world(folder: Path) -> Iterator[None]:
    """Run in `folder` and put back all that a command changes in its process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    benchmark, deterministic = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "CIFARGAN_CACHE": str(folder / ".cache")}
    try:
        with (
            contextlib.chdir(folder),
            patch.object(sys, "argv", ["cifargan"]),
            patch.dict(os.environ, environment),
            torch.random.fork_rng(),
        ):
            yield
    finally:
        GlobalHydra.instance().clear()
        root.handlers[:] = handlers
        root.setLevel(level)
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="session")
def invoke() -> Callable[..., CompletedProcess[str]]:
    """A function that runs `cifargan ARGUMENTS` in a folder, within this process."""

    def run(folder: Path, *arguments: str) -> CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        with _own_world(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(list(arguments))
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0
        return CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def command(invoke: Callable[..., CompletedProcess[str]], tmp_path: Path) -> Callable[..., CompletedProcess[str]]:
    """A function that runs `cifargan ARGUMENTS` in this test's own folder."""
    return lambda *arguments: invoke(tmp_path, *arguments)


@pytest.fixture(scope="session")
def quick() -> tuple[str, ...]:
    """The overrides of a training that takes no time."""
    return (
        *("data=digits", "data.splits=[test]", "data.image_size=16", "device=cpu", "evaluator=none"),
        "trainer.steps=2",
        *("trainer.batch_size=4", "trainer.samples_per_class=1", "trainer.log_every=1", "trainer.checkpoint_every=1"),
        *("model.generator.latent_dim=8", "model.generator.base_channels=4", "model.discriminator.base_channels=4"),
    )


@pytest.fixture(scope="session")
def trained(
    invoke: Callable[..., CompletedProcess[str]], quick: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a finished conditional run of two steps; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    ran = invoke(folder, "train", *quick, "trainer.ema.decay=0.9", "hydra.run.dir=run")
    assert ran.returncode == 0, ran.stderr
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run under this test's own `outputs`."""
    return Path(shutil.copytree(trained, tmp_path / "outputs" / "cdcgan" / "run"))


@pytest.fixture
def files(tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    """A function that reads every file of this test's folder, the cache aside."""

    def read() -> dict[str, bytes]:
        names = {path: path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for path, name in names.items() if not name.startswith(".cache/")}

    return read


@pytest.fixture(scope="session")
def composed() -> Callable[..., DictConfig]:
    """A function that composes what `cifargan train OVERRIDES` would train, every interpolation resolved."""

    def compose(*overrides: str) -> DictConfig:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            # Where no experiment gives a name, it asks Hydra's runtime for the model's, and there is no runtime here.
            name = [] if any(override.startswith("experiment=") for override in overrides) else ["name=test"]
            # The default one would be fetched.
            scores = [] if any(override.startswith("evaluator=") for override in overrides) else ["evaluator=none"]
            return OmegaConf.create(plain(hydra.compose("train", [*name, *scores, "device=cpu", *overrides])))

    return compose


@pytest.fixture(scope="session")
def narrowed() -> Callable[[DictConfig], list[str]]:
    """A function that gives the overrides that make every network of a configuration eight channels wide."""

    def narrow(config: DictConfig) -> list[str]:
        found = []
        for part in ("generator", "discriminator"):
            for key, value in config.model[part].items():
                if key in ("channels", "base_channels", "stem_channels"):
                    width = 8 if isinstance(value, int) else [8] * len(value)
                    found.append(f"model.{part}.{key}={width}".replace(" ", ""))
        return found

    return narrow


@pytest.fixture(scope="session")
def digits() -> Callable[[DictConfig], ImageSet]:
    """A function that loads what a `data` node describes, once for all tests, which only look at it."""
    loaded: dict[str, ImageSet] = {}

    def load(node: DictConfig) -> ImageSet:
        key = OmegaConf.to_yaml(node)
        if key not in loaded:
            loaded[key] = build_data(node)
        return loaded[key]

    return load


@pytest.fixture
def trainer_for(
    composed: Callable[..., DictConfig],
    narrowed: Callable[[DictConfig], list[str]],
    digits: Callable[[DictConfig], ImageSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., contextlib.AbstractContextManager[Trainer]]:
    """A function that opens a narrow trainer on digits from overrides."""
    monkeypatch.setattr("cifargan.config.build_data", digits)

    @contextlib.contextmanager
    def make(*overrides: str) -> Iterator[Trainer]:
        overrides = ("data=digits", "data.splits=[test]", "trainer.batch_size=4", *overrides)
        config = composed(*overrides, *narrowed(composed(*overrides)))
        benchmark = torch.backends.cudnn.benchmark
        trainer = build_trainer(config, RunDirectory(tmp_path))
        with trainer.tracker:
            yield trainer
        torch.backends.cudnn.benchmark = benchmark

    return make


@pytest.fixture
def in_processes(tmp_path: Path) -> Callable[..., list[Any]]:
    """A function: what `work(*args)` returns in each of n processes that know each other through gloo."""

    def run(n: int, work: Callable[..., Any], *args: Any) -> list[Any]:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        arguments = (n, work, args, str(folder))
        ran = mp.start_processes(_enter, arguments, nprocs=n, start_method="fork", join=False)  # type: ignore[attr-defined,no-untyped-call]
        ended = time.monotonic() + PATIENCE
        try:
            while not ran.join(timeout=1, grace_period=20):
                if time.monotonic() > ended:
                    pytest.fail(f"{n} processes wait for each other")
        finally:
            for process in ran.processes:
                process.kill()
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(n)]

    return run


def _enter(rank: int, n: int, work: Callable[..., Any], args: tuple[Any, ...], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=n)
    try:
        torch.save(work(*args), Path(folder, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()


@pytest.fixture
def hear_hangups() -> Iterator[None]:
    """Have the signals of a lost terminal do what they do by default: whoever runs the tests may have them ignored."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in HANGUPS}
    yield
    put_back(before)
