"""Grids for the page: their order, what fits, what is no picture."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifargan.errors import UserError
from cifargan.report import pictures
from cifargan.report.pictures import Slides, Source, open_picture, slides, training_grids
from cifargan.report.truncations import left_behind
from cifargan.runs.directory import RunDirectory


def noise(size: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def labels(found: Slides) -> list[str]:
    return [picture.label for picture in found.pictures]


def test_grids_come_in_the_order_of_their_steps(make_run: Callable[..., Path]) -> None:
    folder = make_run(grids=(50, 100, 9))
    (folder / "samples" / "reals.png").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(folder / "samples" / "step_1000000000.png")
    found = slides(training_grids(folder / "samples"), 1e9)
    assert labels(found) == ["step 9", "step 50", "step 100", "step 1,000,000,000"]
    assert found.left_out == ""


def test_what_does_not_fit_is_thinned_out_and_told() -> None:
    sources = [Source(label=str(i), read=lambda i=i: noise(80, i)) for i in range(30)]  # type: ignore[misc]
    whole = slides(sources, 1e9)
    budget = whole.size * 0.6
    half, none = slides(sources, budget), slides(sources, 10)
    assert len(whole.pictures) == 12
    assert whole.left_out == "12 of 30 pictures are shown"
    assert half.size <= budget
    assert 1 < len(half.pictures) < 12
    assert (labels(half)[0], labels(half)[-1]) == ("0", "29")
    assert (labels(none), none.left_out) == (["29"], "1 of 30 pictures are shown")


def test_a_damaged_picture_costs_itself_alone(make_run: Callable[..., Path]) -> None:
    folder = make_run(grids=(1, 2, 3))
    (folder / "samples" / "step_000000002.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    found = slides(training_grids(folder / "samples"), 1e9)
    assert (labels(found), found.left_out) == (["step 1", "step 3"], "1 could not be read")


def test_only_png_of_a_sane_size_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step_1.png"
    noise(8, 0).save(path, format="GIF")
    with pytest.raises(UserError, match="is damaged or no picture of ours"):
        open_picture(path)
    noise(8, 0).save(path)
    assert open_picture(path).size == (8, 8)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 63)
    with pytest.raises(UserError, match="is damaged or no picture of ours"):
        open_picture(path)


def test_pictures_are_encoded_anew(make_run: Callable[..., Path]) -> None:
    """So no bytes of a stranger's file, such as a text after its end, get into the page."""
    folder = make_run(grids=(7,))
    file = folder / "samples" / "step_000000007.png"
    file.write_bytes(file.read_bytes() + b"<script>alert(1)</script>")
    (picture,) = slides(training_grids(folder / "samples"), 1e9).pictures
    assert b"script" not in picture.data
    with Image.open(io.BytesIO(picture.data)) as image:
        assert (image.format, image.size) == ("WEBP", (102, 102))
        assert np.abs(np.asarray(image, dtype=int) - 7).max() <= 2


def test_sheets_that_differ_in_truncation_alone_make_a_slider(make_run: Callable[..., Path]) -> None:
    folder = make_run()

    def sampled(name: str, truncation: float | None, **changes: object) -> None:
        card = {"step": 200, "weights": "ema", "batch_norm": "standing", "seed": 0, "per_class": 10, **changes}
        place = folder / "generated" / name
        place.mkdir(parents=True)
        (place / "samples.json").write_text(json.dumps({**card, "truncation": truncation}))
        noise(16, 0).save(place / "overview.png")

    assert left_behind(RunDirectory(folder)) == []
    sampled("one", 0.5)
    assert left_behind(RunDirectory(folder)) == []
    sampled("two", None)
    sampled("three", 0.3)
    sampled("other", 0.7, seed=5)
    sampled("raw", 0.7, weights="raw")
    sampled("odd", 0.9, step="x" * 10)
    (folder / "generated" / "odd" / "samples.json").write_text("[")
    found = left_behind(RunDirectory(folder))
    assert [source.label for source in found] == ["truncation 0.3", "truncation 0.5", "no truncation"]
    assert found[0].read().size == (16, 16)
