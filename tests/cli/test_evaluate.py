"""`cifargan evaluate`: runs and anyone's images, tables, files, and what goes wrong."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from cifargan import registry
from cifargan.cli import evaluate
from cifargan.cli.evaluate import thresholds
from cifargan.data.digits import Digits

Command = Callable[..., CompletedProcess[str]]
LITE0 = ("--evaluator", "efficientnet_lite0", "--device", "cpu")


def records(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((path / "evaluation.json").read_text())["records"]
    return found


@pytest.fixture
def digits(tmp_path: Path) -> dict[str, Path]:
    """Twenty test digits as an archive of arrays, seventy others as files in class folders."""
    images = Digits(splits=["test"], image_size=16).load()
    arrays = tmp_path / "digits.npz"
    pixels = images.images.permute(0, 2, 3, 1).numpy()
    classes = np.array(images.classes)
    np.savez(arrays, images=pixels[:20], labels=images.labels[:20].numpy(), classes=classes)
    folder = tmp_path / "real"
    for i in range(20, 90):
        name = folder / images.classes[images.labels[i]]
        name.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(name / f"{i}.png")
    return {"images": arrays, "real": folder}


def test_a_run_is_scored_against_both_splits(command: Command, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    done = command("evaluate", *LITE0, "--samples", "12", "--batch-size", "5")
    assert done.returncode == 0, done.stderr
    found = records(run)
    keys = {(record["metric"], record["reference_split"]) for record in found if record["class_name"] is None}
    scores = ("fd", "kd", "precision", "recall", "density", "coverage")
    assert keys == {(f"{name}_lite0_64", split) for name in scores for split in ("train", "test")} | {
        ("fd_lite0_64_gap", "test_minus_train"),
        ("authentic_lite0_64", "test"),  # which this run was trained on
    }
    by_split = {
        record["reference_split"]: record["value"]
        for record in found
        if record["metric"].startswith("fd_lite0_64") and record["class_name"] is None
    }
    assert by_split["test_minus_train"] == pytest.approx(by_split["test"] - by_split["train"])
    assert all(record["step"] == 2 and record["checkpoint"] == "last" for record in found)
    assert "trained on the test images too" in caplog.text
    assert "step 2 (last), ema weights, standing batch-norm statistics, seed 1, 12 of them" in done.stdout
    assert "digits train (1,498)" in done.stdout
    assert "digits test (299)" in done.stdout
    assert "class_hit_rate_lite0_64 digits train (1,498)" in done.stdout
    assert "12 images for 1280 features: the covariance is singular" in caplog.text
    assert "12 images: the kernel distance is over subsets of 12 instead of 1000" in caplog.text
    with Image.open(run / "evaluation" / "step_2-ema-standing_lite0_64" / "nearest.png") as picture:
        assert picture.width > 12 * 16
    again = command("evaluate", *LITE0, "--samples", "12", "--batch-size", "12")
    assert again.returncode == 0
    for one, other in zip(found, records(run), strict=True):
        assert one | {"value": 0, "spread": 0} == other | {"value": 0, "spread": 0}
        assert other["value"] == pytest.approx(one["value"], rel=1e-6, abs=1e-6)


def test_truncations_make_a_table_and_a_plot(command: Command, run: Path) -> None:
    done = command("evaluate", str(run), *LITE0, "--samples", "12", "--reference", "test", "--truncation", "0.5,none")
    assert done.returncode == 0, done.stderr
    found = [record for record in records(run) if record["metric"] == "fd_lite0_64" and record["class_name"] is None]
    assert [record["truncation"] for record in found] == [0.5, None]
    assert found[0]["value"] != found[1]["value"]
    folder = run / "evaluation" / "step_2-ema-standing_lite0_64"
    assert sorted(path.name for path in folder.iterdir()) == [
        "nearest.png",
        "nearest_truncation_0.5.png",
        "truncation.png",
    ]
    with Image.open(folder / "truncation.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 20
    assert str(folder / "truncation.png") in done.stdout


def test_quick_gives_distances_alone(command: Command, run: Path) -> None:
    done = command("evaluate", *LITE0, "--samples", "12", "--reference", "test", "--quick", "--weights", "raw")
    assert done.returncode == 0, done.stderr
    assert [(record["metric"], record["weights"]) for record in records(run)] == [
        ("fd_lite0_64", "raw"),
        ("kd_lite0_64", "raw"),
    ]
    assert not (run / "evaluation").exists()


def test_metrics_are_chosen_by_name(command: Command, run: Path) -> None:
    common = ("evaluate", *LITE0, "--samples", "12", "--reference", "test", "--metrics")
    done = command(*common, "recall,fid")
    assert done.returncode == 0, done.stderr
    assert [(record["metric"], record["better"]) for record in records(run)] == [
        ("recall_lite0_64", "higher"),
        ("fd_lite0_64", "lower"),
    ]
    assert not (run / "evaluation").exists()
    assert "there is no metric recal; did you mean recall" in command(*common, "recal").stderr
    assert "metric head_hit_rate: needs classifier" in command(*common, "head_hit_rate").stderr


OWN = """
import torch
from torch import Tensor

from cifargan import registry
from cifargan.evaluation.extractors.interface import FeatureExtractor, Features
from cifargan.evaluation.table import Metric


class Pixels(FeatureExtractor):
    name = "pixels"
    resize = "none"
    weights_hash = "none"

    def __init__(self, *, stride: int, complete: bool = True, device: torch.device) -> None:
        self.stride = stride
        self.dim = 3 * (16 // stride) ** 2
        if complete:
            self.suffix = f"_pixels_{stride}"

    def _forward(self, images: Tensor) -> Features:
        return Features(images[:, :, :: self.stride, :: self.stride].flatten(1).float() / 255, None)


def shift(real_features: Tensor, fake_features: Tensor) -> float:
    return float((real_features.mean(dim=0) - fake_features.mean(dim=0)).norm())


registry.EXTRACTORS["pixels"] = Pixels
registry.METRICS["shift"] = Metric(shift, better="lower")
"""


def test_ones_own_extractor_and_metric_work_in_training_and_here(
    command: Command, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    (tmp_path / "mine" / "evaluator").mkdir(parents=True)
    (tmp_path / "mine" / "evaluator" / "pixels.yaml").write_text(
        "defaults: [_shared, _self_]\nname: pixels\nstride: 8\n"
    )
    (tmp_path / "own.py").write_text(OWN)
    samples = ("evaluator.every=1", "evaluator.samples=12", "evaluator.final_samples=0")
    settings = [override for override in quick if not override.startswith("evaluator")]
    train = ("train", "--config-dir", "mine", *settings, *samples, "evaluator=pixels")
    refused = command(*train, "hydra.run.dir=refused")
    assert refused.returncode == 2
    assert "evaluator.name=pixels: no such name" in refused.stderr
    with patch.dict(registry.EXTRACTORS), patch.dict(registry.METRICS):
        runpy.run_path(str(tmp_path / "own.py"))
        trained = command(*train, "evaluator.metrics=[shift,fid]", "hydra.run.dir=run")
        assert trained.returncode == 0, trained.stderr
        assert {record["metric"] for record in records(tmp_path / "run")} == {"shift_pixels_8", "fd_pixels_8"}
        done = command("evaluate", "run", "--device", "cpu", "--samples", "12", "--metrics", "kid,shift")
        assert done.returncode == 0, done.stderr
        assert {record["metric"] for record in records(tmp_path / "run")} >= {"kd_pixels_8"}
        missing = command("evaluate", "run", "--device", "cpu", "--samples", "12", "--evaluator", "pixels")
        assert "evaluator.stride has no value" in missing.stderr
        incomplete = command(*train, "+evaluator.complete=false", "hydra.run.dir=incomplete")
        assert incomplete.returncode == 2
        assert "feature extractor Pixels does not set suffix" in incomplete.stderr


def test_ctrl_c_keeps_what_is_done(command: Command, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, calls = evaluate.judge, iter(range(9))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return judge(*arguments)

    monkeypatch.setattr(evaluate, "judge", interrupted)
    options = ("--samples", "12", "--reference", "test", "--quick", "--truncation", "0.5,0.7,none")
    done = command("evaluate", *LITE0, *options)
    assert done.returncode == 130
    assert {record["truncation"] for record in records(run)} == {0.5}
    assert "fd_lite0_64" in done.stdout


def test_anyones_images_against_anyones(command: Command, tmp_path: Path, digits: dict[str, Path]) -> None:
    done = command("evaluate", *LITE0, "--images", str(digits["images"]), "--reference", str(digits["real"]))
    assert done.returncode == 0, done.stderr
    found = records(tmp_path / "outputs" / "evaluations" / "digits")
    assert {record["reference_name"] for record in found} == {"real"}
    assert {record["step"] for record in found} == {None}
    assert {record["images"] for record in found} == {20}
    assert {record["metric"] for record in found if record["class_name"] == "3"} >= {"class_hit_rate_lite0_64"}
    assert (tmp_path / "outputs" / "evaluations" / "digits" / "nearest.png").is_file()


def test_statistics_are_written_and_read(command: Command, tmp_path: Path, digits: dict[str, Path]) -> None:
    stats = tmp_path / "stats.npz"
    common = ("evaluate", *LITE0, "--images", str(digits["images"]))
    first = command(*common, "--reference", str(digits["real"]), "--export-stats", str(stats))
    assert first.returncode == 0, first.stderr
    second = command(*common, "--reference", str(stats), "--out", str(tmp_path / "second"))
    assert second.returncode == 0, second.stderr
    (distance,) = records(tmp_path / "second")
    whole = records(tmp_path / "outputs" / "evaluations" / "digits")
    assert distance["value"] == next(record["value"] for record in whole if record["metric"] == "fd_lite0_64")
    assert distance["reference_name"] == "real"


def test_a_class_head_says_what_it_makes_of_the_samples(
    command: Command, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    small = [override for override in quick if "base_channels" not in override and "latent_dim" not in override]
    narrow = ("generator.channels=8", "generator.latent_dim=9", "generator.attention=[8]", "discriminator.channels=8")
    trained = command(
        *("train", *small, "model=acbiggan", "loss=hinge", "trainer.d_steps=1", "hydra.run.dir=run"),
        *(
            f"model.{setting}"
            for setting in (*narrow, "generator.class_embedding_dim=4", "discriminator.attention=[8]")
        ),
    )
    assert trained.returncode == 0, trained.stderr
    done = command("evaluate", "run", *LITE0, "--samples", "20", "--reference", "test")
    assert done.returncode == 0, done.stderr
    rates = {
        record["class_name"]: record for record in records(tmp_path / "run") if record["metric"] == "head_hit_rate"
    }
    assert set(rates) == {None, *map(str, range(10))}
    mean = torch.tensor([rates[name]["value"] for name in rates if name is not None]).mean()
    assert rates[None]["value"] == pytest.approx(float(mean))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.5", [0.5]), ("0.3,none", [0.3, None]), ("0.3:1.0:0.1", [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])],
)
def test_truncations_are_a_list_or_a_range(text: str, expected: list[float | None]) -> None:
    assert thresholds(text) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--evalator", "dinov2"], "did you mean --evaluator?"),
        (["--samples", "0"], "0 is no whole number from 1 on"),
        (["--truncation", "-1"], "-1 is no number above 0"),
        (["--checkpoint", "99"], "no checkpoint '99'"),
        (["--checkpoint", "best"], "no checkpoint 'best'"),
        (
            ["--reference", "cifar11"],
            "--reference cifar11: no such file or folder, and no data set; choose from cifar10",
        ),
        (["--reference", "digits:val"], "there is no split 'val'"),
        (["--images", "nowhere"], "images: there is no folder or zip at nowhere"),
        (["--images", "x", "--truncation", "0.5"], "a RUN and --truncation do not go with it"),
        (["--evaluator", "inception", "--extractor-weights", "none.pth"], "none.pth: there is no such file"),
        (["--samples", "5", "--reference", "test"], "precision and recall need more than 5 images a side, not 5"),
    ],
)
def test_what_goes_wrong_is_one_line(command: Command, run: Path, arguments: list[str], message: str) -> None:
    before = sorted(path for path in run.rglob("*"))
    evaluator = [] if "--evaluator" in arguments else LITE0
    done = command("evaluate", *evaluator, *arguments)
    assert done.returncode == 2, done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert sorted(path for path in run.rglob("*")) == before


def test_references_of_another_size_are_refused(command: Command, run: Path) -> None:
    done = command("evaluate", *LITE0, "--samples", "12", "--reference", "digits")
    assert done.returncode == 2
    assert "the images are 16x16 and those of digits 32x32" in done.stderr
