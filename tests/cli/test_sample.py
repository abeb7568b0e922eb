"""`cifargan sample`: what it writes, and that the same request gives the same pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import cifargan
from cifargan.runs.checkpoint import CheckpointStore, load

Command = Callable[..., CompletedProcess[str]]
DIGITS = [str(digit) for digit in range(10)]
Pixels = NDArray[np.uint8]


def pixels(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def cells(sheet: Pixels, size: int = 16, padding: int = 2) -> Pixels:
    """A sheet (H, W, 3) taken apart into its images (rows, columns, size, size, 3)."""
    pitch = size + padding
    rows, columns = sheet.shape[0] // pitch, sheet.shape[1] // pitch
    cut = sheet[padding:, padding:][: rows * pitch, : columns * pitch].reshape(rows, pitch, columns, pitch, 3)
    return cut.transpose(0, 2, 1, 3, 4)[:, :, :size, :size]


@pytest.fixture
def sample(command: Command, trained: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function that samples the trained run with some options and gives the folder that was written."""
    number = iter(range(99))

    def run(*options: str, source: Path = trained) -> Path:
        out = tmp_path / f"out{next(number)}"
        ran = command("sample", str(source), "--device", "cpu", "--out", str(out), *options)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout == f"{out / 'training.gif' if '--training-gif' in options else out}\n"
        return out

    return run


@pytest.fixture
def arrays(sample: Callable[..., Path]) -> Callable[..., Pixels]:
    """A function that gives the images (N, H, W, 3) of the archive that some options make."""

    def read(*options: str) -> Pixels:
        with np.load(sample("--format", "npz", "--per-class", "2", *options) / "samples.npz") as archive:
            images: Pixels = archive["images"]
        return images

    return read


def test_a_sheet_for_every_class_and_an_overview(sample: Callable[..., Path]) -> None:
    out = sample()
    sheets = {f"GAN_100_Generated_{name}.png" for name in DIGITS}
    assert {path.name for path in out.iterdir()} == {*sheets, "overview.png", "samples.json"}
    for name in sheets:
        images = cells(pixels(out / name))
        assert images.shape == (10, 10, 16, 16, 3)
        assert len(np.unique(images.reshape(100, -1), axis=0)) == 100
    # The overview begins with what the sheets begin with.
    overview = pixels(out / "overview.png")
    first_row = cells(pixels(out / "GAN_100_Generated_0.png"))[0]
    assert (cells(overview[:, -182:])[0] == first_row).all()
    assert json.loads((out / "samples.json").read_text()) | {"checkpoint": ""} == {
        "checkpoint": "",
        "step": 2,
        "weights": "ema",
        "batch_norm": "standing",
        "truncation": None,
        "seed": 0,
        "per_class": 100,
        "classes": DIGITS,
    }


def test_where_it_goes_by_default(command: Command, run: Path) -> None:
    ran = command("sample", "--per-class", "1", "--device", "cpu")
    label = "step_2-ema-standing-seed_0"
    assert ran.stdout == f"outputs/cdcgan/run/generated/{label}\n"
    assert (run / "generated" / label / "GAN_1_Generated_7.png").is_file()
    options = ("--weights", "raw", "--batch-norm", "batch", "--truncation", "0.50", "--seed", "3", "--checkpoint", "1")
    ran = command("sample", "cdcgan/run", "--per-class", "1", "--device", "cpu", *options)
    assert ran.stdout == "outputs/cdcgan/run/generated/step_1-raw-batch-truncation_0.5-seed_3\n"


def test_the_three_formats_hold_the_same_images(sample: Callable[..., Path]) -> None:
    out = sample("--format", "grid,png,npz", "--per-class", "4", "--classes", "7,3")
    with np.load(out / "samples.npz") as archive:  # pickles are not allowed by default
        assert sorted(archive) == ["classes", "images", "labels"]
        assert archive["classes"].tolist() == ["7", "3"]
        assert archive["labels"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
        images = archive["images"]
    assert (images.shape, images.dtype) == ((8, 16, 16, 3), np.uint8)
    for row, name in enumerate(("7", "3")):
        wanted = images[4 * row : 4 * row + 4]
        assert (cells(pixels(out / f"GAN_4_Generated_{name}.png"))[0] == wanted).all()
        single = [pixels(path) for path in sorted((out / "png" / name).iterdir())]
        assert (np.stack(single) == wanted).all()
    assert json.loads((out / "samples.json").read_text())["classes"] == ["7", "3"]
    assert not (out / "GAN_4_Generated_1.png").exists()


def test_the_png_folder_is_a_data_set(sample: Callable[..., Path], command: Command, quick: tuple[str, ...]) -> None:
    out = sample("--format", "png", "--per-class", "2", "--classes", "1,2,4")
    mine = [override for override in quick if not override.startswith("data")]
    ran = command("train", *mine, "data=folder", f"data.root={out / 'png'}", "data.image_size=16")
    assert ran.returncode == 0, ran.stderr
    assert "data     png all: 6 images, 3 classes, 16x16" in ran.stderr


def test_the_same_seed_gives_the_same_images_however_they_are_batched(arrays: Callable[..., Pixels]) -> None:
    once = arrays()
    for size in ("1", "7", "1000"):
        # A kernel that is chosen by batch size may round a level the other way here and there.
        difference = np.abs(arrays("--batch-size", size).astype(int) - once.astype(int))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3
    assert (arrays() == once).all()
    assert not (arrays("--seed", "1") == once).all()


def test_settings_that_change_the_images(arrays: Callable[..., Pixels]) -> None:
    kinds = [
        (),
        ("--weights", "raw"),
        ("--checkpoint", "1"),
        ("--batch-norm", "running"),
        ("--batch-norm", "batch"),
        ("--truncation", "0.3"),
    ]
    drawn = [arrays(*options).tobytes() for options in kinds]
    assert len(set(drawn)) == len(kinds)


def test_a_class_is_the_same_alone_and_among_others(arrays: Callable[..., Pixels]) -> None:
    for mode in ("standing", "running", "batch"):
        together, alone = arrays("--batch-norm", mode), arrays("--batch-norm", mode, "--classes", "6")
        assert np.abs(together[12:14].astype(int) - alone).max() <= 1


def test_python_draws_what_the_command_line_draws(arrays: Callable[..., Pixels], trained: Path) -> None:
    options = ("--truncation", "0.7", "--seed", "5", "--classes", "2,8", "--batch-norm", "running")
    loaded = cifargan.load_generator(trained, batch_norm="running", device="cpu")
    images = loaded.sample(4, classes=["2", "8"], truncation=0.7, seed=5)  # the classes in turn
    assert (images[[0, 2, 1, 3]].permute(0, 2, 3, 1).numpy() == arrays(*options)).all()


def test_scale_enlarges_the_pixels(sample: Callable[..., Path]) -> None:
    options = ("--per-class", "2", "--classes", "5")
    small, large = (
        cells(pixels(sample(*options, "--scale", str(n)) / "GAN_2_Generated_5.png"), 16 * n) for n in (1, 3)
    )
    assert (large[:, :, ::3, ::3] == small).all()
    assert (large[:, :, 1::3, 2::3] == small).all()


def test_interpolation(sample: Callable[..., Path], run: Path) -> None:
    # Two steps are not enough to tell the classes apart by a level of 256.
    path = run / "checkpoints" / "step_000000002.safetensors"
    state = load(path)
    tables = [table for name, table in state["ema"].items() if name.startswith("norms.") and table.shape[:1] == (10,)]
    for i, table in enumerate(tables):
        table += torch.randn(table.shape, generator=torch.Generator().manual_seed(i))
    CheckpointStore(path.parent).save(state, 2)

    out = sample("--interpolate", "3,8", "--batch-norm", "running", source=run)
    assert {path.name for path in out.iterdir()} == {"interpolation_3_to_8.png", "interpolation_3_to_8.gif"}
    strip = cells(pixels(out / "interpolation_3_to_8.png"))
    assert strip.shape[:2] == (4, 11)
    # It begins with images of the first class ...
    drawn = sample("--format", "npz", "--per-class", "4", "--classes", "3", "--batch-norm", "running", source=run)
    with np.load(drawn / "samples.npz") as archive:
        assert np.abs(strip[:, 0].astype(int) - archive["images"]).max() <= 1
    # ... and moves in every step, in no step by more than half of the way.
    way = np.abs(strip[:, -1].astype(int) - strip[:, 0]).mean()
    pace = np.abs(np.diff(strip.astype(int), axis=1)).mean(axis=(0, 2, 3, 4))
    assert pace.min() > 0
    assert pace.max() < way / 2
    with Image.open(out / "interpolation_3_to_8.gif") as gif:
        # There and back, where the turn is one frame that stays twice as long.
        assert gif.n_frames == 61  # type: ignore[attr-defined]
        assert gif.size == (18 * 4 + 2, 18 + 2)


def test_training_gif(sample: Callable[..., Path], command: Command, run: Path) -> None:
    for step in (3, 4):
        assert command("train", "resume=latest", f"trainer.steps={step}").returncode == 0
    out = sample("--training-gif", source=run)
    with Image.open(out / "training.gif") as gif:
        assert gif.n_frames == 3  # type: ignore[attr-defined]
        gif.seek(2)
        last = pixels(run / "samples" / "step_000000004.png")
        assert gif.size == (last.shape[1], last.shape[0])
        assert np.abs(np.array(gif.convert("RGB")).astype(int) - last).mean() < 8  # 256 colours
    for path in (run / "samples").iterdir():
        path.unlink()
    ran = command("sample", "--training-gif")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.endswith("samples has no grids: the run has not reached trainer.sample_every yet\n")


def test_an_unconditional_run_gives_one_sheet(
    sample: Callable[..., Path], command: Command, quick: tuple[str, ...], tmp_path: Path
) -> None:
    assert command("train", *quick, "model=dcgan", "hydra.run.dir=run").returncode == 0
    out = sample("--format", "grid,png,npz", "--per-class", "20", source=tmp_path / "run")
    assert {path.name for path in out.iterdir()} == {"GAN_20_Generated_all.png", "png", "samples.npz", "samples.json"}
    assert cells(pixels(out / "GAN_20_Generated_all.png")).shape[:2] == (2, 10)
    assert [path.name for path in (out / "png").iterdir()] == ["all"]
    ran = command("sample", "run", "--classes", "3")
    assert ran.returncode == 2
    assert ran.stderr == "error: --classes: this generator is unconditional, it knows no classes\n"
    out = sample("--interpolate", "any,thing", source=tmp_path / "run")
    assert {path.name for path in out.iterdir()} == {"interpolation_latents.png", "interpolation_latents.gif"}


def test_the_average_is_what_is_sampled_by_default(trained: Path) -> None:
    """With a decay of 0.9 from the first step on, the average lags behind."""
    state = load(trained / "checkpoints" / "step_000000002.safetensors")
    assert not torch.equal(state["ema"]["to_image.weight"], state["generator"]["to_image.weight"])
    assert cifargan.load_generator(trained, device="cpu").weights == "ema"
