"""`cifargan train init=...`: which settings and weights a run takes over, and how it resumes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
import yaml

from cifargan.runs.checkpoint import CheckpointStore, State, load

Command = Callable[..., CompletedProcess[str]]
NEW = (
    *("data=digits", "data.splits=[test]", "data.image_size=16", "data.classes=['3','5']", "device=cpu"),
    *("evaluator=none", "trainer.steps=1", "trainer.batch_size=4", "trainer.samples_per_class=1"),
    *("trainer.log_every=1", "trainer.checkpoint_every=1"),
)


@pytest.fixture
def tune(command: Command, tmp_path: Path) -> Callable[..., Path]:
    """A function that fine-tunes for one step and gives the folder of the run."""

    def run(*overrides: str, name: str = "fine") -> Path:
        ran = command("train", *NEW, f"hydra.run.dir={name}", *overrides)
        assert ran.returncode == 0, ran.stderr
        return tmp_path / name

    return run


def settings(run: Path) -> Any:
    return yaml.safe_load((run / ".hydra" / "config.yaml").read_text())


def state(run: Path) -> State:
    return load(CheckpointStore(run / "checkpoints").find("last"))


def test_other_classes_and_the_settings_of_the_run(tune: Callable[..., Path], run: Path) -> None:
    fine = tune(f"init={run}", "trainer.ema.decay=0.999", "optimizer.generator.lr=1e-12", "optimizer.generator.eps=1")
    # Nobody had to repeat that the networks are four channels wide.
    assert settings(fine)["model"] == settings(run)["model"]
    assert settings(fine)["optimizer"]["generator"]["lr"] == 1e-12
    assert settings(fine)["trainer"]["ema"] == {"decay": 0.999, "start": 0, "ramp": 0.0}
    then, now = state(run), state(fine)
    assert (now["step"], now["classes"]) == (1, ["3", "5"])
    for part in ("generator", "ema"):
        for key, tensor in now[part].items():
            if tensor.shape == then[part][key].shape and "running" not in key and "num_batches" not in key:
                torch.testing.assert_close(tensor, then[part][key], atol=1e-6, rtol=0)
            else:
                assert "norm" in key
    origin = json.loads((fine / "provenance.json").read_text())["sessions"][0]["init"]
    assert (origin["step"], origin["discriminator"]) == (2, True)
    assert origin["path"].endswith("step_000000002.safetensors")
    log = (fine / "train.log").read_text()
    assert log.count("new for 2 classes instead of 10: generator.norms.0.gain") == 1
    assert "discriminator.head.embed.weight" in log


def test_a_run_goes_on_without_its_init(tune: Callable[..., Path], run: Path, command: Command) -> None:
    fine = tune(f"init={run}", "trainer.freeze_d=1")
    shutil.rmtree(run)
    body = "body.0.weight"
    before = state(fine)["discriminator"][body]
    ran = command("train", f"resume={fine}", "trainer.steps=3")
    assert ran.returncode == 0, ran.stderr
    assert state(fine)["step"] == 3
    assert torch.equal(state(fine)["discriminator"][body], before)
    sessions = json.loads((fine / "provenance.json").read_text())["sessions"]
    assert ["init" in session for session in sessions] == [True, False]


def test_an_exported_file(tune: Callable[..., Path], run: Path, command: Command) -> None:
    assert command("export", str(run), "--format", "safetensors", "--device", "cpu").returncode == 0
    fine = tune(f"init={run / 'export' / 'generator.safetensors'}")
    assert settings(fine)["model"] == settings(run)["model"]
    assert "the file holds no discriminator: a new one is trained" in (fine / "train.log").read_text()
    layer = "to_image.weight"
    assert (state(fine)["generator"][layer] - state(run)["ema"][layer]).abs().max() < 1e-3


def test_what_the_command_line_says_wins(tune: Callable[..., Path], run: Path) -> None:
    overrides = ("model.generator.latent_dim=8", "loss=hinge", "trainer.d_steps=2", "model.discriminator.dropout=0.5")
    found = settings(tune(f"init={run}", *overrides))
    assert found["loss"]["name"] == "hinge"
    assert (found["trainer"]["d_steps"], found["model"]["discriminator"]["dropout"]) == (2, 0.5)


def test_a_sweep(run: Path, command: Command, tmp_path: Path) -> None:
    ran = command("train", "-m", *NEW, f"init={run}", "seed=1,2", "hydra.sweep.dir=sweep")
    assert ran.returncode == 0, ran.stderr
    jobs = [path for path in (tmp_path / "sweep").iterdir() if path.is_dir()]
    assert len(jobs) == 2
    for job in jobs:
        assert settings(job)["model"] == settings(run)["model"]
        assert "init     " in (job / "train.log").read_text()
    # A resumed sweep finds them.
    again = command("train", "-m", *NEW, f"init={run}", "seed=1,2", "hydra.sweep.dir=sweep", "sweep=resume")
    assert again.returncode == 0, again.stderr
    assert "0 of 2 jobs remain" in again.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("init=nowhere",), "there is no run at nowhere"),
        (("init=nowhere.safetensors",), "init=nowhere.safetensors: there is no such file"),
        (("init=outputs/cdcgan/run", "model=cdcgan"), "has another generator: "),
        (("init=outputs/cdcgan/run", "data.image_size=32"), "set data.image_size=16"),
        (("init=outputs/cdcgan/run", "trainer.freeze_d=3"), "DCGANDiscriminator has 2 blocks"),
        (("init=outputs/cdcgan/run", "trainer.freeze_d=-1"), "trainer.freeze_d=-1: must be at least 0"),
        (("trainer.freeze_d=1",), "set init=RUN too"),
    ],
)
def test_it_refuses(run: Path, command: Command, tmp_path: Path, overrides: tuple[str, ...], message: str) -> None:
    ran = command("train", *NEW, "hydra.run.dir=fine", *overrides)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert not (tmp_path / "fine").exists()
