"""The lines before a training say what is about to happen."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from omegaconf import DictConfig

from cifargan.build import build_trainer
from cifargan.config import parse
from cifargan.run_log import preflight
from cifargan.runs.directory import RunDirectory


@pytest.fixture
def lines_for(
    composed: Callable[..., DictConfig], quick: tuple[str, ...], tmp_path: Path
) -> Callable[..., dict[str, str]]:
    """A function that gives the lines of a run by their first word."""

    def make(*overrides: str) -> dict[str, str]:
        parts = parse(composed(*quick, *overrides))
        trainer = build_trainer(parts, RunDirectory(tmp_path))
        with trainer.tracker:
            lines = preflight(parts, trainer, tmp_path)
        return {line.split()[0]: line.partition(" ")[2].strip() for line in lines}

    return make


def test_the_lines_of_a_run(lines_for: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    lines = lines_for("precision=bf16", "trainer.ema.decay=0.99", "augment=diffaugment")
    # By hand: a first layer 8x8x16, one 8x4x16, one 4x3x16, and two tables of 10 classes for 8 and 4 channels; a first
    # layer 3x4x16, one 4x8x16, one batch norm of 8, and a head on 128 features with 10 rows and a bias.
    g = 8 * 8 * 16 + 8 * 4 * 16 + 4 * 3 * 16 + 2 * 10 * (8 + 4)
    d = 3 * 4 * 16 + 4 * 8 * 16 + 2 * 8 + 128 * (1 + 10) + 1
    # Weights of four bytes, G's twice, and its average; running statistics, and a count of eight bytes, of each batch norm.
    held = 4 * (2 * g + d + 2 * 2 * (8 + 4) + 2 * 8) + 8 * (2 * 2 + 1)
    assert lines.pop("device").endswith(", bf16, steps 0 to 2")
    assert lines == {
        "run": str(tmp_path),
        "data": "digits test: 299 images, 10 classes, 16x16, flip off",
        "model": f"G dcgan {g / 1e6:.2f} M, D dcgan {d / 1e6:.2f} M (projection head, batch_norm)",
        "loss": "bce, regularizer none, augment diffaugment",
        "scores": "none (evaluator=none)",
        "update": "1 D per G, batch 4, G adam lr 0.0002, D adam lr 0.0002, EMA 0.99",
        "memory": f"images {299 * 3 * 16 * 16 / 1e6:.2f} MB, networks and average {held / 1e6:.2f} MB",
        "speed": "channels_last, fused, batched_spectral_norm",
    }


def test_the_free_memory_of_a_gpu_is_told(
    composed: Callable[..., DictConfig], quick: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parse(composed(*quick))
    trainer = build_trainer(parts, RunDirectory(tmp_path))
    trainer.gan.device = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (7_900_000_000, 8_040_000_000))
    with trainer.tracker:
        (line,) = [line for line in preflight(parts, trainer, tmp_path) if line.startswith("memory")]
    assert line.endswith("; 7.9 of 8.0 GB free")


def test_the_scores_of_a_run(lines_for: Callable[..., dict[str, str]]) -> None:
    lite0 = ("evaluator=efficientnet_lite0", "evaluator.every=2000", "evaluator.resolution=32")
    assert lines_for(*lite0)["scores"] == "efficientnet_lite0: 2,000 samples every 2,000 steps, 50,000 at the end"
    assert lines_for(*lite0, "evaluator.full=true", "evaluator.final_samples=0")["scores"] == (
        "efficientnet_lite0, with details: 2,000 samples every 2,000 steps, none at the end"
    )


def test_what_a_loss_brings_is_told(lines_for: Callable[..., dict[str, str]]) -> None:
    lines = lines_for("loss=wasserstein", "data.flip=true", "optimizer.discriminator.lr=1e-3")
    assert lines["model"].endswith("(projection head, no normaliser)")
    assert lines["update"] == "5 D per G, batch 4, G rmsprop lr 5e-05, D rmsprop lr 0.001, EMA 0"
    assert lines["data"].endswith("flip on")


def test_a_setting_that_is_left_to_its_default(lines_for: Callable[..., dict[str, str]]) -> None:
    lines = lines_for("~optimizer.discriminator.lr", "~trainer.ema.decay")
    assert lines["update"] == "1 D per G, batch 4, G adam lr 0.0002, D adam lr 0.0002, EMA 0"


def test_a_resumed_run_says_where_it_goes_on(command: Callable[..., CompletedProcess[str]], run: Path) -> None:
    ran = command("train", f"resume={run}", "trainer.steps=3")
    assert f"resuming from step 2 of {run}" in ran.stderr
    assert "steps 2 to 3" in ran.stderr


def test_a_gpu_that_lies_idle_is_told_where_the_device_was_left_open(
    lines_for: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifargan.run_log.unused_gpu", lambda: "its driver is too old")
    assert lines_for("device=auto")["gpu"] == "not used: its driver is too old"
    assert "gpu" not in lines_for("device=cpu")
