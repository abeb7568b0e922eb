"""CIFAR-10, from a server on this machine."""

import hashlib
import io
import pickle
import pickletools
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from cifargan.data.cifar10 import CIFAR10
from cifargan.errors import UserError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_BATCH = 20


def as_old_numpy(value: object) -> bytes:
    """Pickle with the flags of a dtype as numbers, as the NumPy did that wrote CIFAR-10."""
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


class Server:
    """Serves one body at any path."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.cut = 0  # how many bytes at the end are promised but not sent
        self.status = 200
        self.requests = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.requests += 1
                self.send_response(owner.status)
                self.send_header("Content-Length", str(len(owner.body)))
                self.end_headers()
                self.wfile.write(owner.body[: len(owner.body) - owner.cut])

            def log_message(self, *args: object) -> None:
                """Keep the test output clean."""

        class Quiet(HTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                """A client that hangs up early is what some tests are about."""

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/cifar-10-python.tar.gz"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of the small archive, with torchvision pointed at it."""
    archive, md5 = build_archive()
    one = Server(archive)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    monkeypatch.setattr(datasets.CIFAR10, "url", one.url)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(
        datasets.CIFAR10, "train_list", [[f"data_batch_{i}", md5[f"data_batch_{i}"]] for i in range(1, 6)]
    )
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    thread = threading.Thread(target=one.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.http.shutdown()
    thread.join()
    one.http.server_close()


def test_it_is_fetched_once_and_read(server: Server, own_cache: Path) -> None:
    train = CIFAR10().load()
    assert train.images.shape == (5 * PER_BATCH, 3, 32, 32)
    assert (train.classes, train.name, train.splits, train.flip) == (tuple(CLASSES), "cifar10", ("train",), True)
    pixels = np.asarray(batch(1)["data"]).reshape(PER_BATCH, 3, 32, 32)
    np.testing.assert_array_equal(train.images[:PER_BATCH].numpy(), pixels)
    assert train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert (own_cache / "cifar10" / "cifar-10-python.tar.gz").exists()
    asked = server.requests
    both = CIFAR10(splits=["train", "test"], classes=["ship", "cat"]).load()
    assert both.labels.tolist() == [1, 0] * 12
    assert server.requests == asked


def test_another_size_is_resized_to(server: Server, tmp_path: Path) -> None:
    assert CIFAR10(root=str(tmp_path), splits=["test"], image_size=16).load().images.shape == (PER_BATCH, 3, 16, 16)


@pytest.mark.parametrize("download", [True, False])
def test_a_copy_by_hand_needs_no_network(server: Server, tmp_path: Path, download: bool) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(server.body)
    assert len(CIFAR10(root=str(tmp_path), splits=["test"], download=download).load()) == PER_BATCH
    assert server.requests == 0


def test_out_of_reach_is_told_in_one_line_with_what_to_do(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{unused.getsockname()[1]}/x.tar.gz")
        with pytest.raises(UserError) as caught:
            CIFAR10(root=str(tmp_path)).load()
    message = str(caught.value)
    assert "\n" not in message
    assert "refused" in message
    for part in (str(tmp_path / "cifar-10-python.tar.gz"), "data=folder data.root=", "data=digits"):
        assert part in message
    assert socket.getdefaulttimeout() is None


def test_a_server_without_the_file(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(UserError, match=r"could not be fetched: http.*404 Not Found"):
        CIFAR10(root=str(tmp_path)).load()


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_download_is_told_and_the_next_one_mends_it(server: Server, tmp_path: Path, damage: str) -> None:
    whole = server.body
    if damage == "cut":
        server.cut = 1000
    else:
        server.body = whole[:-1000] + bytes(1000)
    with pytest.raises(UserError, match=r"CIFAR-10.*(incomplete|could not be fetched).*data=digits"):
        CIFAR10(root=str(tmp_path)).load()
    server.body, server.cut = whole, 0
    assert len(CIFAR10(root=str(tmp_path)).load()) == 5 * PER_BATCH
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".gz"] == ["cifar-10-python.tar.gz"]


def test_a_damaged_archive_is_fetched_again(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(server.body[:5000])
    assert len(CIFAR10(root=str(tmp_path)).load()) == 5 * PER_BATCH
    assert "(5000 bytes) is incomplete or damaged; fetching it again" in caplog.text


def test_a_truncated_archive_without_leave_to_download(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(server.body[:5000])
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz is incomplete or damaged and data\.download=false"):
        CIFAR10(root=str(tmp_path), download=False).load()
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz is not there and data\.download=false"):
        CIFAR10(root=str(tmp_path / "empty"), download=False).load()
    assert server.requests == 0


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_damaged_unpacked_files_are_unpacked_again(server: Server, tmp_path: Path, name: str) -> None:
    before = CIFAR10(root=str(tmp_path)).load()
    (tmp_path / "cifar-10-batches-py" / name).write_bytes(b"damaged")
    asked = server.requests
    torch.testing.assert_close(CIFAR10(root=str(tmp_path)).load().images, before.images)
    assert server.requests == asked


def test_a_root_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be stored in data\.root="):
        CIFAR10(root=str(tmp_path / "file" / "data")).load()


def test_unknown_names_are_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean test"):
        CIFAR10(splits=["tests"])
    with pytest.raises(UserError, match="did you mean horse"):
        CIFAR10(root=str(tmp_path), classes=["hores"]).load()
