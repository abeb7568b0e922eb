"""The user's own images."""

import logging
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cifargan.data import folder, storage
from cifargan.data.folder import Folder
from cifargan.data.sources import ImageSet
from cifargan.errors import UserError

Draw = Callable[..., Image.Image]


def load(
    root: Path, splits: list[str] | None = None, *, skip: bool = False, classes: list[str] | None = None
) -> ImageSet:
    return Folder(
        root=str(root),
        splits=splits or [],
        classes=classes or [],
        image_size=8,
        on_broken="skip" if skip else "error",
    ).load()


def pack(root: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(root.rglob("*")):
            file.write(path, prefix + path.relative_to(root).as_posix())
    return target


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function after which decoding fails."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("decoded though it was cached")

    return lambda: monkeypatch.setattr(folder, "decode_files", refuse)


def test_class_folders_become_labels(tree: Path, draw: Draw) -> None:
    insects = load(tree, ["train"])
    assert insects.classes == ("ant", "bee")
    assert insects.labels.tolist() == [0, 0, 0, 1, 1]
    assert (insects.name, insects.splits, insects.skipped) == ("insects", ("train",), 0)
    for seed in range(5):
        np.testing.assert_array_equal(insects.images[seed].numpy(), np.asarray(draw(seed)).transpose(2, 0, 1))
    both = load(tree, ["test", "train"])
    assert both.labels.tolist() == [0, 1, 0, 0, 0, 1, 1]
    torch.testing.assert_close(both.images[2:], insects.images)
    bees = load(tree, ["train"], classes=["bee"])
    assert (bees.classes, bees.labels.tolist()) == (("bee",), [0, 0])
    shutil.rmtree(tree / "train" / "bee")
    assert load(tree / "train").num_classes == 1


def test_train_is_taken_where_there_are_only_splits(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert load(tree).fingerprint == load(tree, ["train"]).fingerprint
    assert "holds test, train: using train" in caplog.text
    (tree / "beetle").mkdir()
    (tree / "beetle" / "0.png").write_bytes((tree / "train" / "ant" / "0.png").read_bytes())
    assert load(tree).classes == ("beetle", "test", "train")  # with an image folder beside them the splits are classes


def test_classes_are_read_at_any_depth_and_names_in_any_case(tree: Path, draw: Draw) -> None:
    root = tree / "train"
    (root / "ant" / "more" / "deep").mkdir(parents=True)
    draw(7).save(root / "ant" / "more" / "deep" / "x.PNG")
    draw(8).save(root / "bee" / "y.JpEg", "JPEG")
    draw(9).save(root / "bee" / "z.webp")
    (root / "ant-lion").mkdir()  # sorts before "ant/" as plain text
    draw(10).save(root / "ant-lion" / "0.png")
    insects = load(root)
    assert insects.classes == ("ant", "ant-lion", "bee")
    assert insects.labels.tolist() == [0, 0, 0, 0, 1, 2, 2, 2, 2]
    assert insects.splits == ("all",)


def test_other_files_are_ignored_and_counted(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    whole = load(tree, ["train"]).fingerprint
    (tree / "train" / "ant" / "notes.txt").write_text("six legs")
    (tree / "train" / "README.md").write_text("insects")
    (tree / "train" / ".hidden").mkdir()
    assert load(tree, ["train"]).fingerprint == whole
    assert "2 files ignored" in caplog.text


@pytest.mark.parametrize("prefix", ["", "wrapper/"])
@pytest.mark.parametrize("splits", [[], ["train", "test"]])
def test_a_zip_gives_what_its_folder_gives(tree: Path, tmp_path: Path, prefix: str, splits: list[str]) -> None:
    packed = pack(tree, tmp_path / "insects.zip", prefix)
    zipped, unpacked = load(packed, splits), load(tree, splits)
    assert zipped.fingerprint == unpacked.fingerprint
    assert (zipped.classes, zipped.splits, zipped.name) == (unpacked.classes, unpacked.splits, unpacked.name)
    assert load(pack(tree / "train" / "bee", tmp_path / "one.zip", "bee/")).classes == ("bee",)  # not a wrapper


def test_the_second_load_decodes_nothing(tree: Path, tmp_path: Path, no_decoding: Callable[[], None]) -> None:
    packed = pack(tree, tmp_path / "insects.zip")
    first = [load(tree, ["train"]), load(packed, ["train"])]
    Folder(root=str(tree), splits=["train"], image_size=8, cache=str(tmp_path / "mine")).load()
    assert len(list((tmp_path / "mine").glob("*/images.json"))) == 1
    no_decoding()
    second = [load(tree, ["train"]), load(packed, ["train"])]
    assert [one.fingerprint for one in first] == [one.fingerprint for one in second]
    assert load(tree, ["train"], classes=["bee"]).labels.tolist() == [0, 0]  # the cache serves any subset


def rewrite(root: Path) -> None:
    path = root / "ant" / "2.png"
    before = path.stat()
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0] += 1
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


CHANGES: dict[str, Callable[[Path], object]] = {
    "add": lambda root: shutil.copy(root / "ant" / "0.png", root / "bee" / "9.png"),
    "remove": lambda root: (root / "ant" / "2.png").unlink(),
    "rewrite": rewrite,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_or_zip_is_decoded_again(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    caplog.set_level(logging.INFO)
    packed = pack(tree / "train", tmp_path / "insects.zip")
    before = {load(tree, ["train"]).fingerprint, load(packed).fingerprint}
    CHANGES[change](tree / "train")
    pack(tree / "train", packed)
    after = {load(tree, ["train"]).fingerprint, load(packed).fingerprint}
    assert (len(before), len(after), len(before & after)) == (1, 1, 0)
    assert caplog.text.count("changed since they were cached") == 2
    assert load(tree, ["train"]).fingerprint in after
    assert caplog.text.count("changed since they were cached") == 2


@pytest.mark.parametrize("zipped", [False, True])
def test_broken_files_stop_or_are_left_out(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, zipped: bool
) -> None:
    root = tree / "train"
    (root / "ant" / "1.png").write_text("not an image")
    whole = (root / "bee" / "0.png").read_bytes()
    (root / "bee" / "0.png").write_bytes(whole[: len(whole) // 2])
    place = pack(root, tmp_path / "insects.zip") if zipped else root
    message = r"ant/1\.png is broken \(not a PNG, JPEG or WebP image\); .*data\.on_broken=skip"
    with pytest.raises(UserError, match=message):
        load(place)
    insects = load(place, skip=True)
    assert (insects.labels.tolist(), insects.skipped) == ([0, 0, 1], 2)
    assert "2 broken files left out: ant/1.png, bee/0.png" in caplog.text
    with pytest.raises(UserError, match=message):  # the cache knows it too
        load(place)
    assert load(place, skip=True).skipped == 2


def test_a_zip_member_that_was_damaged_is_a_broken_file(tree: Path, tmp_path: Path) -> None:
    packed = pack(tree / "train", tmp_path / "insects.zip")
    with zipfile.ZipFile(packed) as file:
        member = file.getinfo("bee/1.png")
    data = bytearray(packed.read_bytes())
    middle = member.header_offset + 30 + len(member.filename) + member.compress_size // 2
    data[middle] ^= 0xFF
    packed.write_bytes(data)
    with pytest.raises(UserError, match=r"bee/1\.png is broken \(cannot be unpacked"):
        load(packed)
    assert load(packed, skip=True).skipped == 1


def test_a_file_that_vanishes_is_reported(tree: Path) -> None:
    def read() -> None:
        with storage.open_storage(tree) as opened:
            (tree / "train" / "ant" / "0.png").unlink()
            opened.read("train/ant/0.png")

    with pytest.raises(UserError, match=r"data\.root: cannot read .*0\.png"):
        read()


def test_a_root_that_is_no_image_folder_is_explained(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder or zip at .*/nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a file, but not a zip"):
        load(tree / "train" / "ant" / "0.png")
    with pytest.raises(UserError, match=r"holds 3 files but no folder; expected one sub-folder per class"):
        load(tree / "train" / "ant")
    with pytest.raises(UserError, match=r"data\.splits: there is no folder 'tests'; did you mean test\?"):
        load(tree, ["tests"])
    with pytest.raises(UserError, match="did you mean bee"):
        load(tree, ["train"], classes=["bees"])
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(UserError, match="no PNG, JPEG or WebP file"):
        load(tmp_path / "empty")
    (tree / "train" / "wasp").mkdir()
    with pytest.raises(UserError, match=r"class 'wasp' of insects has no image"):
        load(tree, ["train"])
    with pytest.raises(UserError, match="train and test differ in the class 'wasp'"):
        load(tree, ["train", "test"])


@pytest.mark.slow
@pytest.mark.skipif("CIFARGAN_TEST_IMAGES" not in os.environ, reason="CIFARGAN_TEST_IMAGES names no image folder")
def test_real_images(tmp_path: Path) -> None:
    root = os.environ["CIFARGAN_TEST_IMAGES"]
    images = Folder(root=root, splits=["test"], cache=str(tmp_path)).load()
    assert images.images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(images.labels).tolist() == [1000] * 10
    # The mean colour of CIFAR-10, as it is often quoted for normalisation.
    mean = images.images.double().mean(dim=(0, 2, 3)) / 255
    torch.testing.assert_close(mean, torch.tensor([0.494, 0.485, 0.450], dtype=torch.float64), rtol=0, atol=0.005)
