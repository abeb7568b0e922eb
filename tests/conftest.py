"""What more than one folder of tests needs: the command line in this process, and the shipped configuration."""

import contextlib
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import hydra
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor

from cifargan.build import build_trainer
from cifargan.cli import main
from cifargan.config import build_data, parse, plain
from cifargan.data.sources import ImageSet
from cifargan.runs.directory import RunDirectory
from cifargan.schema import conf_dir
from cifargan.training.interruption import HANGUPS, put_back
from cifargan.training.loop import Trainer

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
        trainer = build_trainer(parse(config), RunDirectory(tmp_path))
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
def served(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A folder `root`, the `address` that it is served at, and the `requests` so far; a client does not pause.

    Each of the next replies ends after the number of bytes in `cuts`; later ones are complete.
    """
    served = SimpleNamespace(root=tmp_path_factory.mktemp("served"), requests=[], cuts=[])
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            served.requests.append(args)

        def copyfile(self, source: Any, outputfile: Any) -> None:
            content = source.read()
            outputfile.write(content[: served.cuts.pop(0)] if served.cuts else content)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(served.root))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        served.address = f"http://127.0.0.1:{server.server_port}"
        yield served
        server.shutdown()
        thread.join()


@pytest.fixture
def hear_hangups() -> Iterator[None]:
    """Have the signals of a lost terminal do what they do by default: whoever runs the tests may have them ignored."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in HANGUPS}
    yield
    put_back(before)


RUN_CONFIG: dict[str, Any] = {
    "name": "biggan",
    "seed": 3,
    "data": {"name": "digits", "image_size": 8},
    "loss": {"name": "hinge"},
    "trainer": {"steps": 200, "batch_size": 4},
    "optimizer": {"generator": {"lr": 0.0002, "betas": [0.5, 0.999]}},
    "evaluator": {"name": "inception", "samples": 100, "final_samples": 500},
}


def _flat_record(**changes: Any) -> dict[str, Any]:
    """A line of evaluation.json, as training writes it."""
    return {
        "metric": "fid",
        "value": 20.0,
        "n": 100,
        "better": "lower",
        "kind": "fid",
        "spread": None,
        "spread_over": None,
        "class_name": None,
        "reference_name": "digits",
        "reference_split": "train",
        "reference_n": 1498,
        "reference_fingerprint": "cd0f4874aa",
        "images": 100,
        "extractor": "inception",
        "weights_hash": "6726825d00",
        "resize": "TF1 bilinear to 299",
        "dtype": "float32",
        "subject": "training",
        "step": 100,
        "checkpoint": "last",
        "weights": "ema",
        "batch_norm": "standing",
        "truncation": None,
        "seed": 1,
        **changes,
    }


@pytest.fixture
def record() -> Callable[..., dict[str, Any]]:
    """A function that makes a line of evaluation.json."""
    return _flat_record


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a run under `outputs/` without training."""

    def make(
        name: str = "run",
        *,
        status: str = "finished",
        started: str = "2026-11-20T10:00:00+0000",
        records: list[dict[str, Any]] | None = None,
        overrides: tuple[str, ...] = ("experiment=biggan",),
        device: str = "cpu (x86_64)",
        speed: float = 50.0,
        config: dict[str, Any] | None = None,
        grids: tuple[int, ...] = (),
        classes: tuple[str, ...] = (),
    ) -> Path:
        folder = tmp_path / "outputs" / name
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump({**RUN_CONFIG, **(config or {})}))
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
        session = {
            "started": started,
            "git": {"commit": "0123456789abcdef", "dirty": True},
            "versions": {"torch": "2.15.0"},
            "seed": 7,
            "device": device,
            "classes": list(classes),
            "data": {"name": "digits", "splits": ["train"], "fingerprint": "cd0f4874"},
        }
        (folder / "provenance.json").write_text(json.dumps({"sessions": [session]}))
        (folder / "status.json").write_text(json.dumps({"status": status, "time": 1000.0, "step": 200}))
        log = [
            {
                "step": step,
                "time": 900.0 + step,
                "loss/discriminator": 1.0 + step / 100,
                "loss/generator": 2.0,
                "speed/steps_per_s": speed / 4,
                "speed/images_per_s": speed,
            }
            for step in range(50, 201, 50)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        if records is not None:
            (folder / "evaluation.json").write_text(json.dumps({"records": records}))
        (folder / "samples").mkdir()
        for step in grids:
            pixels = np.full((102, 102, 3), step % 256, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "samples" / f"step_{step:09d}.png")
        return folder

    return make


class Payload:
    """Makes the folder `canary` when it is unpickled by a reader that runs code."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A folder that only a payload makes."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code from a file ran"


@pytest.fixture
def payload(canary: Path) -> Payload:
    """An object that runs code when it is unpickled."""
    return Payload(canary)


@pytest.fixture
def within() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """A function for a block that may add so many MiB to the memory of this process, at its highest."""
    resetter = Path("/proc/self/clear_refs")
    if not resetter.exists() or not os.access(resetter, os.W_OK):
        pytest.skip("only Linux tells the highest memory of a part of a process")

    def status(key: str) -> int:
        return int(re.findall(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])

    @contextlib.contextmanager
    def measured(mebibytes: int) -> Iterator[None]:
        resetter.write_text("5")
        before = status("VmRSS")
        yield
        assert (status("VmHWM") - before) / 1024 < mebibytes

    return measured


@pytest.fixture
def differences() -> Callable[[Any, Any], list[str]]:
    """A function that names every place at which two states are not the same bits."""

    def compare(a: Any, b: Any, where: str = "") -> list[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return [f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}"]
            return [line for key in a for line in compare(a[key], b[key], f"{where}/{key}")]
        if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
            return [line for i, pair in enumerate(zip(a, b, strict=True)) for line in compare(*pair, f"{where}/{i}")]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
        return [] if type(a) is type(b) and a == b else [where]

    return compare
