"""CIFAR-10, from a local server."""

import hashlib
import io
import pickle
import pickletools
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision import datasets

from cifargan.data.cifar10 import CIFAR10
from cifargan.errors import UserError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_BATCH = 20


def as_old_numpy(value: object) -> bytes:
    """Pickle with the flags of a dtype as numbers, as in the published files, which an old NumPy wrote."""
    pickled = pickletools.optimize(pickle.dumps(value, protocol=2))
    flags, numbers = b"\x89\x88\x87R", b"K\x00K\x01\x87R"
    assert flags in pickled
    return pickled.replace(flags, numbers)


def batch(index: int) -> dict[str, object]:
    data = np.random.default_rng(index).integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8)
    return {"data": data, "labels": [i % 10 for i in range(PER_BATCH)]}


def build_archive() -> tuple[bytes, dict[str, str]]:
    """An archive in the published format with 5 + 1 small batches, and the MD5 of each file in it."""
    files = {f"data_batch_{i}": as_old_numpy(batch(i)) for i in range(1, 6)}
    files["test_batch"] = as_old_numpy(batch(6))
    files["batches.meta"] = pickle.dumps({"label_names": CLASSES}, protocol=2)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue(), {name: hashlib.md5(content).hexdigest() for name, content in files.items()}


@pytest.fixture
def server(served: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A server of the small `archive`, which torchvision takes for the published one."""
    content, md5 = build_archive()
    served.archive = served.root / "cifar-10-python.tar.gz"
    served.archive.write_bytes(content)
    train = [[f"data_batch_{i}", md5[f"data_batch_{i}"]] for i in range(1, 6)]
    published = {
        "url": f"{served.address}/{served.archive.name}",
        "tgz_md5": hashlib.md5(content).hexdigest(),
        "train_list": train,
        "test_list": [["test_batch", md5["test_batch"]]],
        "meta": {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]},
    }
    for name, value in published.items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    return served


def test_it_is_fetched_once_and_read(server: SimpleNamespace, tmp_path: Path) -> None:
    train = CIFAR10().load()
    assert train.images.shape == (5 * PER_BATCH, 3, 32, 32)
    assert (train.classes, train.name, train.splits, train.flip) == (tuple(CLASSES), "cifar10", ("train",), True)
    pixels = np.asarray(batch(1)["data"]).reshape(PER_BATCH, 3, 32, 32)
    np.testing.assert_array_equal(train.images[:PER_BATCH].numpy(), pixels)
    assert train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert (tmp_path / "cache" / "cifar10" / "cifar-10-python.tar.gz").exists()
    asked = len(server.requests)
    both = CIFAR10(splits=["train", "test"], classes=["ship", "cat"]).load()
    assert both.labels.tolist() == [1, 0] * 12
    assert CIFAR10(splits=["test"], image_size=16).load().images.shape == (PER_BATCH, 3, 16, 16)
    assert len(server.requests) == asked


@pytest.mark.parametrize("download", [True, False])
def test_a_copied_archive_needs_no_network(server: SimpleNamespace, tmp_path: Path, download: bool) -> None:
    (tmp_path / server.archive.name).write_bytes(server.archive.read_bytes())
    assert len(CIFAR10(root=str(tmp_path), splits=["test"], download=download).load()) == PER_BATCH
    assert server.requests == []


def test_a_failed_download_is_one_line_with_a_remedy(server: SimpleNamespace, tmp_path: Path) -> None:
    server.archive.unlink()
    with pytest.raises(UserError, match=r"could not be fetched: http.*404") as caught:
        CIFAR10(root=str(tmp_path)).load()
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path / "cifar-10-python.tar.gz"), "data=folder data.root=", "data=digits"):
        assert part in message
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be stored in data\.root="):
        CIFAR10(root=str(tmp_path / "file" / "data")).load()


def test_a_damaged_archive_is_downloaded_again(
    server: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = server.archive.read_bytes()
    server.archive.write_bytes(whole[:-1000] + bytes(1000))
    with pytest.raises(UserError, match=r"CIFAR-10.*could not be fetched.*data=digits"):
        CIFAR10(root=str(tmp_path)).load()
    server.archive.write_bytes(whole)
    (tmp_path / server.archive.name).write_bytes(whole[:5000])
    with caplog.at_level("INFO"):
        assert len(CIFAR10(root=str(tmp_path)).load()) == 5 * PER_BATCH
    assert "is incomplete or damaged" in caplog.text


def test_nothing_is_downloaded_without_permission(server: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / server.archive.name).write_bytes(server.archive.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz is incomplete or damaged and data\.download=false"):
        CIFAR10(root=str(tmp_path), download=False).load()
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz is missing and data\.download=false"):
        CIFAR10(root=str(tmp_path / "empty"), download=False).load()
    assert server.requests == []


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_damaged_unpacked_files_are_unpacked_again(server: SimpleNamespace, tmp_path: Path, name: str) -> None:
    before = CIFAR10(root=str(tmp_path)).load()
    (tmp_path / "cifar-10-batches-py" / name).write_bytes(b"damaged")
    asked = len(server.requests)
    torch.testing.assert_close(CIFAR10(root=str(tmp_path)).load().images, before.images)
    assert len(server.requests) == asked


def test_unknown_names_are_refused(server: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean test"):
        CIFAR10(splits=["tests"])
    with pytest.raises(UserError, match="did you mean horse"):
        CIFAR10(root=str(tmp_path), classes=["hores"]).load()
