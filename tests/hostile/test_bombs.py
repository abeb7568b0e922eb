"""Ten gigabytes of zeros, compressed to ten megabytes, for each reader of zips."""

import contextlib
import io
import re
import resource
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from cifargan.data.folder import Folder, load_images
from cifargan.errors import UserError
from cifargan.evaluation.extractors.interface import FeatureExtractor
from cifargan.evaluation.extractors.weights import read_state_dict
from cifargan.evaluation.records import FeatureSpace
from cifargan.evaluation.reference import import_statistics

Within = Callable[[int], contextlib.AbstractContextManager[None]]
BLOCK = bytes(2**20)
BLOCKS = 10 * 2**10  # 10 GiB
EDGE = 2**15  # of a covariance of 8 GiB, and of ten images of 1 GiB


def add_zeros(path: Path, name: str, blocks: int, *, head: bytes = b"") -> None:
    """Add a member to a zip: `head`, then so many blocks of zeros, compressed.

    One block is compressed and repeated: after a full flush a stream does not refer to earlier bytes.
    """
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    first = deflate.compress(head) + deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress(BLOCK) + deflate.flush(zlib.Z_FULL_FLUSH)
    info = zipfile.ZipInfo(name)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        with archive.open(info, "w", force_zip64=True) as member:
            member.write(first + block * blocks + deflate.flush())
        # The header before the member, and the one that closing the zip writes, now say that it is compressed.
        info.compress_type, info.CRC = zipfile.ZIP_DEFLATED, checksum(head, blocks)
        info.file_size = len(head) + blocks * len(BLOCK)
        assert archive.fp is not None
        archive.fp.seek(info.header_offset)
        archive.fp.write(info.FileHeader(zip64=True))


def checksum(head: bytes, blocks: int) -> int:
    """The CRC-32 of `head` and the blocks: each block applies the same affine function to its 32 bits."""
    none = zlib.crc32(BLOCK, 0)
    bits = [zlib.crc32(BLOCK, 1 << i) ^ none for i in range(32)]
    found = zlib.crc32(head)
    for _ in range(blocks):
        following = none
        for i in range(32):
            following ^= bits[i] * (found >> i & 1)
        found = following
    return found


def header(shape: tuple[int, ...], dtype: str) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


SPACE = FeatureSpace(extractor="stub", weights_hash="0", resize="none", dtype="float32")
STUB = cast(FeatureExtractor, SimpleNamespace(dim=EDGE, name="stub", space=SPACE))
READERS: dict[str, Callable[[Path], object]] = {
    "training.zip": lambda path: Folder(root=str(path), image_size=8).load(),
    "judged.zip": load_images,
    "images.npz": load_images,
    "statistics.npz": lambda path: import_statistics(path, STUB),
    "weights.pth": read_state_dict,
}
REFUSED = r"unpacks to more than 64 MiB|unpacks to (8|10)\.\d GiB of next to nothing|needs .* of memory|is damaged"


def make(folder: Path, name: str) -> Path:
    """A valid file for one of those readers, with 8 to 10 GiB of zeros."""
    path = folder / name
    if name.endswith(".zip"):
        add_zeros(path, "cat/0.png", BLOCKS)
    elif name == "images.npz":
        add_zeros(path, "images.npy", BLOCKS // 3 * 3, head=header((BLOCKS // 3, 1024, 1024, 3), "|u1"))
    elif name == "statistics.npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("mu.npy", header((EDGE,), "<f8") + bytes(8 * EDGE))
        add_zeros(path, "sigma.npy", 8 * EDGE * EDGE // len(BLOCK), head=header((EDGE, EDGE), "<f8"))
    else:
        torch.save({"format": 3, "w": torch.zeros(1)}, path.with_suffix(".plain"))
        with zipfile.ZipFile(path.with_suffix(".plain")) as good, zipfile.ZipFile(path, "w") as archive:
            for member in good.namelist():
                if not member.endswith("data/0"):
                    archive.writestr(member, good.read(member))
        add_zeros(path, f"{path.stem}/data/0", BLOCKS)
    return path


def test_the_files_are_valid_zips(tmp_path: Path) -> None:
    add_zeros(tmp_path / "small.zip", "a", 5, head=b"header")
    add_zeros(tmp_path / "small.zip", "b", 1)
    with zipfile.ZipFile(tmp_path / "small.zip") as archive:
        assert archive.testzip() is None
        assert archive.read("a") == b"header" + bytes(5 * 2**20)
    add_zeros(tmp_path / "large.zip", "a", BLOCKS)
    assert (tmp_path / "large.zip").stat().st_size < 12 * 2**20
    with zipfile.ZipFile(tmp_path / "large.zip") as archive:
        assert archive.getinfo("a").file_size == 10 * 2**30


@pytest.mark.parametrize("name", READERS)
def test_ten_gigabytes_of_zeros(tmp_path: Path, within: Within, name: str) -> None:
    path = make(tmp_path, name)
    assert path.stat().st_size < 12 * 2**20
    with within(256), pytest.raises(UserError, match=REFUSED) as error:
        READERS[name](path)
    assert str(error.value).isprintable()


def limited(command: Callable[..., subprocess.CompletedProcess[str]], paths: list[str]) -> list[tuple[int, str]]:
    """Evaluate the images in each of the files in a process that may take one more GiB of memory."""
    import cifargan.cli.evaluate  # noqa: F401 - its libraries do not count

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, size + 2**30))
    ran = [command("evaluate", "--images", path, "--reference", "digits", "--device", "cpu") for path in paths]
    return [(one.returncode, one.stderr) for one in ran]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory limits work on Linux alone")
def test_a_process_that_may_take_a_gigabyte_more(
    command: Callable[..., subprocess.CompletedProcess[str]], in_processes: Callable[..., list[Any]], tmp_path: Path
) -> None:
    (tmp_path / "sent").mkdir()
    paths = [str(make(tmp_path / "sent", name)) for name in ("judged.zip", "images.npz")]
    for code, stderr in in_processes(1, limited, command, paths)[0]:
        assert code == 2, stderr
        assert re.search(rf"^error: .*({REFUSED})", stderr, re.MULTILINE)
        assert "Traceback" not in stderr
    assert sorted(str(path) for path in (tmp_path / "sent").iterdir()) == sorted(paths)
