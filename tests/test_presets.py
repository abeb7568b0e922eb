"""Every shipped experiment composes, is what its paper says in size, and trains."""

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from omegaconf import DictConfig

from cifargan.config import build_discriminator, build_generator, parse
from cifargan.runs.checkpoint import load
from cifargan.schema import conf_dir

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
# Of networks that were published with their numbers of parameters.
PARAMETERS = {
    "biggan": (9_416_196, 2_415_170),
    "biggan_lecam": (9_416_196, 2_415_170),
    "biggan_lecam_diffaug": (9_416_196, 2_415_170),
    "biggan_original": (4_304_387, 4_207_361),
}


def test_there_is_a_preset_for_each_system_to_reproduce() -> None:
    systems = {
        *("dcgan", "cdcgan_cbn", "dcgan_dense", "sagan_bce", "csagan_wgan", "dcgan64", "cdcgan_concat"),
        *("biggan", "biggan_lecam", "biggan_lecam_diffaug", "acbiggan", "biggan_original", "quickstart"),
    }
    assert systems <= set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_full_width_preset(
    experiment: str, composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Composes, passes the check under its own name, and can be built as it stands (on a device without memory)."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # `meta` has none
    config = composed(f"experiment={experiment}")
    assert parse(config).root.name == experiment
    size = int(config.data.image_size)
    with torch.device("meta"), torch.no_grad():
        g = build_generator(config.model.generator, num_classes=10, image_size=size)
        d = build_discriminator(config.model.discriminator, num_classes=10, image_size=size)
        labels = torch.tensor([3, 9])
        images = g(torch.zeros(2, g.latent_dim), labels)
        assert images.shape == (2, 3, size, size)
        assert d(images, labels).logits.shape == (2,)
    if experiment in PARAMETERS:
        assert tuple(sum(p.numel() for p in network.parameters()) for network in (g, d)) == PARAMETERS[experiment]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_two_steps_of_every_preset(
    experiment: str,
    command: Callable[..., CompletedProcess[str]],
    composed: Callable[..., DictConfig],
    narrowed: Callable[[DictConfig], list[str]],
    tmp_path: Path,
) -> None:
    config = composed(f"experiment={experiment}", "data=digits")
    arguments = [
        *("train", f"experiment={experiment}", "data=digits", "evaluator=none", "hydra.run.dir=run", "device=cpu"),
        *("trainer.steps=2", "trainer.batch_size=4", "trainer.log_every=1", "trainer.samples_per_class=1"),
        *narrowed(config),
    ]
    ran = command(*arguments)
    assert ran.returncode == 0, ran.stderr

    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        # What is not finite is written as null.
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in line.values())
        assert line["gradient_norm/generator"] > 0
        assert line["gradient_norm/discriminator"] > 0
    assert json.loads((tmp_path / "run/status.json").read_text())["status"] == "finished"
    state = load(tmp_path / "run/checkpoints/step_000000002.safetensors")
    assert state["config"]["loss"] == config.loss
    assert state["config"]["optimizer"] == config.optimizer
