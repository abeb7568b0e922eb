"""A zip of a folder of images: the same images, the same bytes, and a report of what is left out."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from cifargan.data.folder import Folder
from cifargan.data.pack import pack
from cifargan.errors import UserError


def test_the_zip_reads_as_the_folder_does(tree: Path, tmp_path: Path) -> None:
    (tree / "notes.txt").write_text("no image")
    out = tmp_path / "new" / "insects.zip"
    packed = pack(tree, out)
    assert packed.counts == {("test", "ant"): 1, ("test", "bee"): 1, ("train", "ant"): 3, ("train", "bee"): 2}
    assert (packed.ignored, packed.broken) == (1, ())
    for split in ("train", "test"):
        folder, zipped = (Folder(root=str(root), splits=[split]).load() for root in (tree, out))
        assert torch.equal(folder.images, zipped.images)
        assert zipped.fingerprint == folder.fingerprint
    with zipfile.ZipFile(out) as file:
        assert file.read("train/ant/0.png") == (tree / "train/ant/0.png").read_bytes()


def test_the_same_files_give_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    pack(tree, tmp_path / "a.zip")
    copy = tmp_path / "elsewhere"
    shutil.copytree(tree, copy)
    for path in copy.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o600)
    pack(copy, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    pack(tmp_path / "a.zip", tmp_path / "c.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "c.zip").read_bytes()


def test_nothing_is_overwritten_without_force(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.zip"
    out.write_text("mine")
    with pytest.raises(UserError, match=r"a\.zip exists.*--force"):
        pack(tree, out)
    assert out.read_text() == "mine"
    pack(tree, out, force=True)
    assert zipfile.is_zipfile(out)


def test_a_broken_image_stops_it_or_is_left_out_and_named(tree: Path, tmp_path: Path) -> None:
    whole = (tree / "train/ant/1.png").read_bytes()
    (tree / "train/ant/1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"ant/1\.png is broken .*--skip-broken"):
        pack(tree, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
    packed = pack(tree, tmp_path / "a.zip", skip_broken=True)
    assert packed.broken == ("train/ant/1.png",)
    assert packed.counts["train", "ant"] == 2


def test_folders_that_cannot_be_packed(tree: Path, tmp_path: Path) -> None:
    shutil.move(tree / "train", tmp_path / "only" / "cat")  # one class with folders looks like a folder of classes
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    for name, message in (
        ("only", "move it into a folder called train"),
        ("empty", "nothing to pack"),
        ("none", "no folder or zip at"),
    ):
        with pytest.raises(UserError, match=message):
            pack(tmp_path / name, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()
