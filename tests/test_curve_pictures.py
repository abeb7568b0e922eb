"""The pictures of docs/reading_curves.md: drawn from what a run left behind, and from nothing else."""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from cifargan.images import grid, save_png
from cifargan.training.run_directory import RunDirectory

SIZE = 16


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """What a run of ten classes leaves: images that are as bright as their place in the grid."""
    run = RunDirectory(tmp_path / "run")
    (run.path / ".hydra").mkdir(parents=True)
    (run.path / ".hydra" / "config.yaml").write_text(f"data:\n  image_size: {SIZE}\n")
    keys = ["loss/discriminator", "loss/generator", "accuracy/real", "accuracy/fake", "logit/real", "logit/fake"]
    keys += ["gradient_norm/discriminator", "gradient_norm/generator"]
    points: list[dict[str, float | None]] = [
        {"step": step, **dict.fromkeys(keys, step / 100)} for step in (100, 200, 300)
    ]
    points[1]["loss/generator"] = None  # a value that was not finite
    run.metrics.write_text("".join(json.dumps(point) + "\n" for point in [*points, {"step": 300, "score/fid": 9.0}]))
    images = torch.arange(100, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, SIZE, SIZE)
    save_png(grid(images, columns=10), run.samples / "step_000000300.png")
    return run


def test_a_picture_is_drawn_and_is_small(
    script: ModuleType, run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "picture.png"
    assert script.main([str(run.path), str(out), "--steps", "300", "300"]) == 0
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.mode == "P"
        assert len(picture.getcolors() or []) > 10
    assert out.stat().st_size < 50_000


def test_curves_are_what_was_logged_without_gaps_and_scores(script: ModuleType, run: RunDirectory) -> None:
    assert script.curve(run, "loss/generator") == [(100, 1.0), (300, 3.0)]
    assert script.curve(run, "accuracy/fake") == [(100, 1.0), (200, 2.0), (300, 3.0)]


def test_the_corner_holds_whole_images_with_a_line_around_each(script: ModuleType, run: RunDirectory) -> None:
    corner = script.corner(run, 300)
    columns, rows = script.SHOWN
    assert corner.size == (2 + 18 * columns, 2 + 18 * rows)
    middles = [[corner.getpixel((10 + 18 * x, 10 + 18 * y))[0] for x in range(columns)] for y in range(rows)]
    assert middles == [[10 * y + x for x in range(columns)] for y in range(rows)]
    assert corner.getpixel((corner.width - 1, corner.height - 1)) == (255, 255, 255)


def test_a_grid_smaller_than_the_corner_is_shown_whole(script: ModuleType, run: RunDirectory) -> None:
    path = run.samples / "step_000000400.png"
    save_png(grid(torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8), columns=2), path)
    with Image.open(path) as whole:
        assert script.corner(run, 400).size == whole.size


def test_a_wrong_step_and_a_folder_that_is_no_run_are_told_in_a_line(
    script: ModuleType, run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "picture.png"
    assert script.main([str(run.path), str(out), "--steps", "299"]) == 2
    assert "no grid of step 299; it has: 300" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert script.main([str(tmp_path / "empty"), str(out), "--steps", "300"]) == 2
    assert "holds no losses" in capsys.readouterr().err
    (run.path / ".hydra" / "config.yaml").unlink()
    assert script.main([str(run.path), str(out), "--steps", "300"]) == 2
    assert "data.image_size" in capsys.readouterr().err
    assert not out.exists()
