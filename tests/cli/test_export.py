"""`cifargan export`: a file that draws what its run draws, and the card beside it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

import cifargan
from cifargan.loading import load_generator
from cifargan.tensor_file import checksum, read

Command = Callable[..., CompletedProcess[str]]


@pytest.fixture
def exported(command: Command, run: Path) -> Path:
    """The exported generator of a run."""
    ran = command("export", str(run), "--format", "safetensors", "--device", "cpu")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{run / 'export' / 'generator.safetensors'}\n"
    return run / "export" / "generator.safetensors"


def test_images_are_those_of_the_run(exported: Path, run: Path) -> None:
    file = cifargan.load_generator(exported, device="cpu")
    theirs = load_generator(run, device="cpu")
    assert (file.classes, file.conditional, file.step, file.weights) == (theirs.classes, True, 2, "ema")
    for truncation in (None, 0.5, 1.0):
        images = file.sample(12, seed=3, truncation=truncation)
        assert torch.equal(images, theirs.sample(12, seed=3, truncation=truncation))
    # The statistics in the file are those for a truncation of 1.
    own = cifargan.load_generator(exported, device="cpu", batch_norm="running").sample(12, seed=3, truncation=1.0)
    assert torch.equal(own, images)


def test_the_card(exported: Path) -> None:
    card = json.loads(exported.with_name("generator.safetensors.json").read_text())
    assert card["classes"] == [str(digit) for digit in range(10)]
    assert (card["latent_dim"], card["image_size"], card["conditional"], card["step"]) == (8, 16, True, 2)
    assert card["truncation"]["batch_norm_statistics_made_for"] == 1.0
    assert card["data"]["name"] == "digits"
    assert len(card["data"]["fingerprint"]) == 64
    assert "CC BY 4.0" in card["data"]["origin"]
    assert {"torch", "cifargan"} <= set(card["versions"])
    assert card["file_sha256"] == hashlib.sha256(exported.read_bytes()).hexdigest()
    assert card["weights_sha256"] == checksum(read(exported)[0])


def test_sample_and_evaluate_take_the_file(command: Command, exported: Path, run: Path) -> None:
    for source in (run, exported):
        options = ("--device", "cpu", "--per-class", "2", "--format", "npz")
        ran = command("sample", str(source), *options, "--truncation", "0.5")
        assert ran.returncode == 0, ran.stderr
    name = "generated/step_2-ema-standing-truncation_0.5-seed_0/samples.npz"
    assert (run / name).read_bytes() == (exported.with_suffix("") / name).read_bytes()
    # No features here: as far as the options that it says no to.
    ran = command("evaluate", str(exported), "--device", "cpu", "--checkpoint", "best")
    assert ran.returncode == 2
    assert "holds step 2 alone, not best" in ran.stderr


def test_other_weights_and_truncations(command: Command, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "raw.safetensors"
    options = ("--weights", "raw", "--checkpoint", "1", "--truncation", "none", "--out", str(out))
    assert command("export", str(run), "--device", "cpu", *options).returncode == 0
    file = load_generator(out, device="cpu")
    theirs = load_generator(run, checkpoint="1", weights="raw", device="cpu")
    assert (file.weights, file.step) == ("raw", 1)
    assert torch.equal(file.sample(5), theirs.sample(5))
    assert (
        json.loads((tmp_path / "raw.safetensors.json").read_text())["truncation"]["batch_norm_statistics_made_for"]
        is None
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "onx"), "invalid choice: 'onx'"),
        (("--format", "safetensors", "--out", "x.onnx"), "a file of --format safetensors is called x.safetensors"),
        (("--format", "safetensors", "--checkpoint", "7"), "no checkpoint '7'"),
        (("--format", "safetensors", "--truncation", "-1"), "no number above 0"),
    ],
)
def test_it_refuses(command: Command, run: Path, options: tuple[str, ...], message: str) -> None:
    ran = command("export", str(run), *options, "--device", "cpu")
    assert ran.returncode == 2
    assert message in ran.stderr
    assert not list(run.rglob("export/*"))
