"""Decoded images on disk."""

import json
from pathlib import Path

import numpy as np
import pytest

from cifargan.data.cache import ArrayCache, cache_dir

IMAGES = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("CIFARGAN_CACHE", "~/own")
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("CIFARGAN_CACHE")
    assert cache_dir() == Path("/x/cifargan")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_dir() == tmp_path / ".cache" / "cifargan"


def test_what_is_saved_is_loaded_for_its_digest_only(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path / "one", label="test")
    assert cache.load("a" * 64) is None
    cache.save("a" * 64, IMAGES, {"labels": [0, 1]})
    found = cache.load("a" * 64)
    assert found is not None
    np.testing.assert_array_equal(found.images, IMAGES)
    assert found.info == {"labels": [0, 1]}
    assert cache.load("b" * 64) is None


def test_a_new_array_takes_the_place_of_the_old(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path, label="test")
    cache.save("a" * 64, IMAGES, {})
    cache.save("b" * 64, IMAGES + 1, {})
    assert cache.load("a" * 64) is None
    found = cache.load("b" * 64)
    assert found is not None
    np.testing.assert_array_equal(found.images, IMAGES + 1)
    assert len(list(tmp_path.iterdir())) == 2  # the array, the page, and nothing left over


def test_a_damaged_cache_is_told_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ArrayCache(tmp_path, label="test")
    cache.save("a" * 64, IMAGES, {})
    array = next(tmp_path.glob("*.npy"))
    whole = array.read_bytes()
    array.write_bytes(whole[:-10])
    assert cache.load("a" * 64) is None
    np.save(array, np.array([{"pickled": "object"}], dtype=object))
    assert cache.load("a" * 64) is None
    array.unlink()
    assert cache.load("a" * 64) is None
    (tmp_path / "images.json").write_text(json.dumps([]))
    assert cache.load("a" * 64) is None
    assert caplog.text.count("is damaged") == 4


def test_a_disk_that_refuses_costs_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    ArrayCache(tmp_path / "file", label="test").save("a" * 64, IMAGES, {})
    assert "not cached" in caplog.text
