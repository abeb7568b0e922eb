"""Downloads from a local server that closes connections and sends other files."""

import hashlib
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from cifargan.errors import UserError
from cifargan.fetching import Published, fetch

BODY = bytes(range(256)) * 5000  # 1.28 MB


@pytest.fixture
def server(served: SimpleNamespace) -> SimpleNamespace:
    """A server of `archive`, and what is `published` of it."""
    served.archive = served.root / "archive.bin"
    served.archive.write_bytes(BODY)
    served.published = Published(
        title="archive",
        url=f"{served.address}/archive.bin",
        algorithm="md5",
        checksum=hashlib.md5(BODY).hexdigest(),
    )
    return served


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_downloaded_once_into_a_new_folder(server: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "new" / "archive.bin"
    for _ in range(2):
        fetch(server.published, path)
        assert path.read_bytes() == BODY
    assert names(path.parent) == ["archive.bin"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert len(server.requests) == 1
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        fetch(server.published, path / "a")


def test_a_broken_connection_is_tried_again_and_a_damaged_file_replaced(
    server: SimpleNamespace, tmp_path: Path
) -> None:
    server.cuts = [300_000, 0]
    (tmp_path / "a").write_bytes(BODY[:-1])
    fetch(server.published, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("cut", r"archive\.bin: .*1000 bytes read"),
        ("changed", r"archive\.bin sent another file .*wrong MD5"),
        ("missing", r"archive\.bin: 404 File not found$"),
        ("offline", r"archive\.bin: .*refused$"),
    ],
)
def test_a_failed_download_is_one_line_and_leaves_nothing(
    server: SimpleNamespace, tmp_path: Path, case: str, message: str
) -> None:
    if case == "cut":
        server.cuts = [1000] * 100
    elif case == "changed":
        server.archive.write_bytes(BODY[:-1] + b"x")
    elif case == "missing":
        server.archive.unlink()
    with socket.socket() as silent:
        if case == "offline":
            silent.bind(("127.0.0.1", 0))  # and does not listen
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/archive.bin"
            server.published = replace(server.published, url=url)
        with pytest.raises(UserError, match=message) as caught:
            fetch(server.published, tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("downloaded", [True, False])
def test_a_second_process_waits_for_the_first(
    server: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture, downloaded: bool
) -> None:
    path = tmp_path / "a"
    caplog.set_level("INFO")
    second = threading.Thread(target=fetch, args=(server.published, path))
    with FileLock(tmp_path / ".a.lock", thread_local=False):
        second.start()
        while "another process is fetching" not in caplog.text:
            time.sleep(0.01)
        if downloaded:
            path.write_bytes(BODY)
    second.join(60)
    assert path.read_bytes() == BODY
    assert len(server.requests) == (0 if downloaded else 1)
