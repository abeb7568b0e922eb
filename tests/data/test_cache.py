"""Decoded images on disk."""

import json
from pathlib import Path

import numpy as np
import pytest

from cifargan.data.cache import DecodedCache, cache_dir

IMAGES = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
NAMES = ["a/0.png", "a/1.png", "a/2.png"]
BROKEN = {"a/1.png": "cut short"}


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("CIFARGAN_CACHE", "~/own")
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("CIFARGAN_CACHE")
    assert cache_dir() == Path("/x/cifargan")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_dir() == tmp_path / ".cache" / "cifargan"


def test_a_cache_is_valid_for_its_digest_and_replaced_by_the_next(tmp_path: Path) -> None:
    cache = DecodedCache(tmp_path / "one", label="test")
    assert cache.load("a" * 64, NAMES, image_size=4) is None
    for digest, images in (("a" * 64, IMAGES), ("b" * 64, IMAGES + 1)):
        cache.save(digest, images, BROKEN)
        found = cache.load(digest, NAMES, image_size=4)
        assert found is not None
        np.testing.assert_array_equal(found[0], images)
        assert found[1] == BROKEN
    assert cache.load("a" * 64, NAMES, image_size=4) is None
    assert len(list((tmp_path / "one").iterdir())) == 2  # the array and the JSON file


def test_a_damaged_cache_is_reported_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = DecodedCache(tmp_path, label="test")
    cache.save("a" * 64, IMAGES, BROKEN)
    page, array = tmp_path / "images.json", next(tmp_path.glob("*.npy"))
    whole = array.read_bytes()

    def refused() -> None:
        caplog.clear()
        assert cache.load("a" * 64, NAMES, image_size=4) is None
        assert "is damaged" in caplog.text

    array.write_bytes(whole[:-10])
    refused()
    np.save(array, np.array([{"pickled": "object"}], dtype=object))
    refused()
    array.unlink()
    refused()
    array.write_bytes(whole)
    unlike: list[object] = [{}, {"b/7.png": "another file"}, {"../../a/1.png": "x"}, [["a/1.png", "x"]], [], 3]
    for broken in unlike:  # the array
        page.write_text(json.dumps({"digest": "a" * 64, "broken": broken}))
        refused()
    page.write_text("[]")
    refused()


def test_a_cache_that_cannot_be_written_gives_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    DecodedCache(tmp_path / "file", label="test").save("a" * 64, IMAGES, {})
    assert "not cached" in caplog.text
