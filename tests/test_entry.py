"""`cifargan.train()` and `run()`: what they return, and what of the process they leave as it was."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import cifargan
from cifargan.compose import compose, own_hydra
from cifargan.entry import run
from cifargan.errors import UserError
from cifargan.runs.checkpoint import load
from cifargan.runs.directory import RunDirectory


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train in this test's folder, and put torch's switches back."""
    monkeypatch.chdir(tmp_path)
    benchmark = torch.backends.cudnn.benchmark
    with torch.random.fork_rng():
        yield
    torch.backends.cudnn.benchmark = benchmark


def test_train_twice_in_a_process_and_resume(quick: tuple[str, ...], tmp_path: Path) -> None:
    first, second = (cifargan.train([*quick, f"seed={seed}"]) for seed in (1, 2))
    assert (first.step, first.scores, first.best_score, first.stopped_early) == (2, {}, None, False)
    assert first.directory != second.directory
    assert first.directory.parent == second.directory.parent == tmp_path / "outputs" / "cdcgan"
    resumed = cifargan.train([f"resume={first.directory}", "trainer.steps=3"])
    assert (resumed.directory, resumed.step) == (first.directory, 3)
    assert load(first.directory / "checkpoints" / "step_000000003.safetensors")["config"]["seed"] == 1
    assert cifargan.train([f"resume={first.directory}"]).step == 3  # there is nothing left to train


def test_the_process_is_left_as_it_was(quick: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(sys, "argv", ["mine", "--flag"])
    signals = [signal.SIGINT, signal.SIGTERM]

    def state() -> list[object]:
        handlers = [signal.getsignal(number) for number in signals]
        hydra = [GlobalHydra.instance().hydra, HydraConfig.instance().cfg]
        return [sys.argv[:], root.handlers[:], root.level, handlers, dict(os.environ), *hydra]

    before = state()
    cifargan.train(quick)
    assert state() == before
    with pytest.raises(UserError, match=r"trainer\.stpes"):
        cifargan.train([*quick, "trainer.stpes=1"])
    assert state() == before
    # A program that composes with Hydra itself continues with its own configs.
    with own_hydra():
        own = GlobalHydra.instance().hydra
        cifargan.train([*quick, "seed=3"])
        assert GlobalHydra.instance().hydra is own


def test_own_configs(quick: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "it's mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text("# @package _global_\nname: own\ntrainer:\n  steps: 1\n")
    rest = [override for override in quick if override != "trainer.steps=2"]
    result = cifargan.train([*rest, "experiment=own"], config_dir=folder.parent)
    assert (result.step, result.directory.parent.name) == (1, "own")
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        cifargan.train(quick, config_dir="nowhere")


def test_log_lines_go_to_stderr_where_nothing_else_receives_them(
    quick: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    result = cifargan.train(quick)
    said = capsys.readouterr().err
    assert f"finished: {result.directory}" in said
    assert "finished" in (result.directory / "train.log").read_text()
    assert logging.getLogger().handlers == []


def test_a_notebook_trains_on_one_device(quick: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=object))
    with pytest.raises(UserError, match=r"trainer\.devices: a notebook trains on one device"):
        cifargan.train([*quick, "trainer.devices=2"])
    assert not Path("outputs").exists()


def test_run_takes_a_configuration_and_a_folder(quick: tuple[str, ...]) -> None:
    with own_hydra():
        config: DictConfig = compose([*quick, "model=dcgan"]).config
    result = run(config, Path("here"), overrides=[*quick, "model=dcgan"])
    assert result.directory == Path("here").absolute()
    assert RunDirectory(Path("here")).status()["status"] == "finished"
    with pytest.raises(UserError, match="already holds a run"):
        run(config, Path("here"))
    config.trainer.steps = 0
    with pytest.raises(UserError, match=r"trainer\.steps=0"):
        run(config, Path("there"))
    assert not Path("there").exists()
    with pytest.raises(UserError, match=r"trainer\.steps=0"):
        run(config, Path("kept"), keep_log=True)
    assert [path.name for path in Path("kept").iterdir()] == ["train.log"]
