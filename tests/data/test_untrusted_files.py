"""Untrusted images, archives and arrays: each is refused in one line, or read without harm."""

import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from cifargan.data.folder import Folder, load_images
from cifargan.errors import UserError
from cifargan.evaluation.extractors.interface import FeatureExtractor
from cifargan.evaluation.records import FeatureSpace
from cifargan.evaluation.reference import Reference, import_statistics

Within = Callable[[int], contextlib.AbstractContextManager[None]]


def picture(kind: str = "PNG", *, seed: int = 0, size: int = 8) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def bomb(width: int, height: int, *, rows: int) -> bytes:
    """A PNG with any size in its header, and `rows` rows of zeros."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes((3 * width + 1) * rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    """A folder of one class with one good image."""
    (tmp_path / "sent" / "cat").mkdir(parents=True)
    (tmp_path / "sent" / "cat" / "0.png").write_bytes(picture())
    return tmp_path / "sent"


def folder(root: Path, **settings: Any) -> Folder:
    return Folder(root=str(root), image_size=8, **settings)


def clear(error: pytest.ExceptionInfo[UserError]) -> str:
    assert str(error.value).isprintable()
    return str(error.value)


BROKEN = {
    "claims 10 gigapixels": (bomb(100_000, 100_000, rows=1), "megapixels|exceeds limit"),
    "a GIF": (picture("GIF"), "not a PNG, JPEG or WebP image"),
    "a BMP": (picture("BMP"), "not a PNG, JPEG or WebP image"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not a PNG, JPEG or WebP image"),
    "text": (b"<script>alert(1)</script>", "not a PNG, JPEG or WebP image"),
    "nothing": (b"", "not a PNG, JPEG or WebP image"),
    "half": (picture()[:-100], "truncated|bytes"),
}


READERS = pytest.mark.parametrize(
    "reader", [lambda root: folder(root).load(), load_images], ids=["training", "evaluation"]
)


@pytest.mark.parametrize("name", BROKEN)
@READERS
def test_files_that_are_no_images(sent: Path, within: Within, reader: Callable[[Path], object], name: str) -> None:
    data, reasons = BROKEN[name]
    (sent / "cat" / "0.png").write_bytes(data)
    with within(64), pytest.raises(UserError, match="is broken") as error:
        reader(sent)
    line = clear(error)
    assert any(reason in line for reason in [*reasons.split("|"), "not a PNG, JPEG or WebP image"])


def test_a_few_small_files_do_not_ask_for_all_memory(
    sent: Path, within: Within, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifargan.untrusted._memory", lambda: 2.0**28)
    for i in range(4):
        (sent / "cat" / f"{i}.png").write_bytes(bomb(4000, 4000, rows=0))
    with within(64), pytest.raises(UserError, match=r"0\.2 GiB of memory, and may take 0\.1 GiB here") as error:
        load_images(sent)
    clear(error)


def test_a_sparse_file_of_ten_gigabytes(sent: Path, within: Within) -> None:
    with (sent / "cat" / "1.png").open("wb") as file:
        file.truncate(10 * 2**30)
    with within(256), pytest.raises(UserError, match="is more than 64 MiB"):
        folder(sent).load()


def archive(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for i, name in enumerate(names):
            file.writestr(name, picture(seed=i))
    return path


def test_a_zip_with_names_outside_of_it(tmp_path: Path) -> None:
    names = ("../evil/1.png", "/etc/evil/2.png", "cat/../../evil/3.png", "//evil/4.png")
    path = archive(tmp_path / "sent.zip", "cat/0.png", "dog/0.png", *names)
    before = {file for file in tmp_path.parent.rglob("*") if file.is_file()}
    images = folder(path).load()
    assert (images.classes, len(images)) == (("cat", "dog"), 2)
    after = {file for file in tmp_path.parent.rglob("*") if file.is_file()} - before
    assert all((tmp_path / "cache") in file.parents for file in after)


def test_a_link_in_a_zip_is_not_followed_and_a_thousand_folders_take_no_time(tmp_path: Path) -> None:
    path = archive(tmp_path / "sent.zip", "cat/0.png", "cat/2.png")
    link = zipfile.ZipInfo("cat/1.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match=r"1\.png is broken \(not a PNG"):
        folder(path).load()
    assert folder(archive(tmp_path / "deep.zip", "a/" * 1000 + "cat/0.png")).load().classes == ("a",)


@READERS
def test_archives_that_are_not_read(tmp_path: Path, reader: Callable[[Path], object]) -> None:
    with tarfile.open(tmp_path / "sent.tar", "w") as file:
        for name in ("../evil.png", "/tmp/evil.png", "cat/0.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture())
            file.addfile(info, io.BytesIO(picture()))
    with pytest.raises(UserError, match="is a file, but not a zip"):
        reader(tmp_path / "sent.tar")
    (tmp_path / "damaged.zip").write_bytes(archive(tmp_path / "good.zip", "cat/0.png").read_bytes()[40:])
    with pytest.raises(UserError, match=r"damaged|not a zip|broken|no PNG|no folder") as error:
        reader(tmp_path / "damaged.zip")
    clear(error)


def test_pipes_devices_and_circular_links_are_skipped(sent: Path) -> None:
    os.mkfifo(sent / "cat" / "pipe.png")
    (sent / "cat" / "zero.png").symlink_to("/dev/zero")
    (sent / "cat" / "gone.png").symlink_to("/nowhere")
    (sent / "cat" / "inside").mkdir()
    (sent / "cat" / "inside" / "round").symlink_to(sent / "cat")
    assert len(folder(sent).load()) == 1
    assert len(load_images(sent)) == 1


NAMES = {
    "newline": "a\nb",
    "terminal": "\x1b[31mred\x1b[0m",
    "direction": "a\u202eb",
    "bytes": os.fsdecode(b"\xff\xfe"),
    "long": "x" * 200,
}


@pytest.mark.parametrize("name", NAMES)
@READERS
def test_names_of_classes(sent: Path, reader: Callable[[Path], object], name: str) -> None:
    (sent / "cat").rename(sent / NAMES[name])
    with pytest.raises(UserError, match=r"the class name .*: rename the class") as error:
        reader(sent)
    clear(error)


def test_unusual_names_of_classes_are_kept(sent: Path) -> None:
    names = sorted(["<script>alert(1)<", 'it\'s "quoted"', "$(touch x)", "Katze & Hund", "猫", "a..b"])
    for name in names:
        shutil.copytree(sent / "cat", sent / name)
    assert folder(sent, classes=names).load().classes == tuple(names)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files_are_shown_safely(sent: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    (sent / "cat" / f"{NAMES[name]}.png").write_bytes(b"")
    for reader in (load_images, lambda root: folder(root).load()):
        with pytest.raises(UserError, match="is broken") as error:
            reader(sent)
        clear(error)
    with caplog.at_level("DEBUG"):
        folder(sent, on_broken="skip").load()
    assert "1 broken files left out" in caplog.text
    assert all(record.getMessage().isprintable() for record in caplog.records)


SPACE = FeatureSpace(extractor="stub", weights_hash="0", resize="none", dtype="float32")
STUB = cast(FeatureExtractor, SimpleNamespace(dim=2, name="stub", space=SPACE))


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def npz(path: Path, **arrays: Any) -> Path:
    """Write an .npz file of arrays; bytes are written unchanged."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in arrays.items():
            content = io.BytesIO()
            content.write(array) if isinstance(array, bytes) else np.save(content, array)
            file.writestr(f"{name}.npy", content.getvalue())
    return path


GOOD = np.zeros((2, 4, 4, 3), np.uint8)
IMAGES: dict[str, tuple[dict[str, Any], str]] = {
    "ten terabytes": ({"images": header((10**9, 60, 60, 3))}, "needs .* of memory"),
    "shorter than it claims": ({"images": header((4, 4, 4, 3)) + bytes(4)}, "is damaged"),
    "longer than it claims": ({"images": header((1, 1, 1, 3)) + bytes(4000)}, "is damaged"),
    "more than there are numbers": ({"images": header((2**62, 4, 4, 3))}, "needs .* of memory|is damaged"),
    "negative": ({"images": header((-1, 4, 4, 3))}, "is damaged|expected square"),
    "floats": ({"images": GOOD.astype(np.float32)}, "expected square images as uint8"),
    "channels first": ({"images": np.zeros((2, 3, 8, 8), np.uint8)}, "expected square images as uint8"),
    "flat": ({"images": GOOD[0]}, "expected square images as uint8"),
    "none": ({"images": GOOD[:0]}, "expected square images as uint8"),
    "labels that are NaN": (
        {"images": GOOD, "classes": np.array(["a"]), "labels": np.array([np.nan, 0])},
        "is damaged",
    ),
    "another class": ({"images": GOOD, "classes": np.array(["a"]), "labels": np.array([0, 7])}, "`labels` must"),
    "a class in another folder": (
        {"images": GOOD, "classes": np.array(["../a"]), "labels": np.array([0, 0])},
        "holds a slash",
    ),
    "a class for a terminal": ({"images": GOOD, "classes": np.array(["\x1b[2J"]), "labels": np.array([0, 0])}, "print"),
    "no arrays": ({}, "is damaged"),
}


STATISTICS: dict[str, tuple[dict[str, Any], str]] = {
    "ten terabytes": ({"mu": np.zeros(2), "sigma": header((10**6, 10**6), "<f8")}, "do not go with stub"),
    "NaN": ({"mu": np.array([0, np.nan]), "sigma": np.eye(2)}, "is not finite"),
    "negative variance": ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "it is no covariance"),
    "complex": ({"mu": np.zeros(2), "sigma": np.eye(2) * 1j}, "is damaged"),
    "text": ({"mu": np.zeros(2), "sigma": np.array([["a", "b"]] * 2)}, "is damaged"),
    "not symmetric": ({"mu": np.zeros(2), "sigma": np.array([[1, 1], [0, 1]])}, "not symmetric"),
    "other weights": (
        {"mu": np.zeros(2), "sigma": np.eye(2), "about": np.array('{"weights_hash": "bad"}')},
        "was made with weights_hash bad, not 0",
    ),
    "one alone": ({"mu": np.zeros(2)}, "has no arrays `mu` and `sigma`"),
    "deep": ({"mu": np.zeros(2), "sigma": np.eye(2), "about": np.array("[" * 20_000)}, "is damaged"),
    "about nothing": ({"mu": np.zeros(2), "sigma": np.eye(2), "about": np.array("3")}, "is damaged"),
    "about too many": ({"mu": np.zeros(2), "sigma": np.eye(2), "about": np.array('{"n": "x"}')}, "is damaged"),
    "for a terminal": (
        {"mu": np.zeros(2), "sigma": np.eye(2), "about": np.array(json.dumps({"dtype": "\x1b[2J"}))},
        r"was made with dtype \\x1b",
    ),
}


def load_statistics(path: Path) -> Reference:
    return import_statistics(path, STUB)


ARRAYS = [(load_images, *case) for case in IMAGES.values()] + [(load_statistics, *case) for case in STATISTICS.values()]


@pytest.mark.parametrize(("read", "arrays", "message"), ARRAYS, ids=[*IMAGES, *STATISTICS])
def test_damaged_arrays(
    tmp_path: Path, within: Within, read: Callable[[Path], object], arrays: dict[str, Any], message: str
) -> None:
    with within(64), pytest.raises(UserError, match=message) as error:
        read(npz(tmp_path / "sent.npz", **arrays))
    clear(error)


def test_names_in_statistics_are_shown_safely(tmp_path: Path) -> None:
    about = np.array(json.dumps({"name": "\x1b[2J", "split": "a\nb", "n": 5}))
    card = load_statistics(npz(tmp_path / "sent.npz", mu=np.zeros(2), sigma=np.eye(2), about=about)).card
    assert (card.name, card.split, card.n) == ("\\x1b[2J", "a\\nb", 5)


@pytest.mark.parametrize("read", [load_images, load_statistics])
def test_code_in_arrays_is_not_run(tmp_path: Path, payload: object, read: Callable[[Path], object]) -> None:
    objects = np.array([payload], dtype=object)
    for arrays in ({"images": objects}, {"images": GOOD, "classes": objects}, {"mu": objects, "sigma": objects}):
        with pytest.raises(UserError, match=r"is damaged|has no arrays|do not go with|expected square"):
            read(npz(tmp_path / "sent.npz", **arrays))
    for content in (pickle.dumps(payload), b"", b"PK\x03\x04 nothing", b"\x93NUMPY"):
        (tmp_path / "damaged.npz").write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            read(tmp_path / "damaged.npz")
