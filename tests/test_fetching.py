"""Downloads from a local server that closes connections and sends other files."""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

from cifargan.errors import UserError
from cifargan.fetching import Published, fetch

BODY = bytes(range(256)) * 5000  # 1.28 MB


class Server:
    """Serves one body at any path.

    Attributes:
        status: of each reply.
        cuts: the number of bytes after which each of the next replies ends; later ones are complete.
    """

    def __init__(self) -> None:
        self.body = BODY
        self.status = 200
        self.cuts: list[int] = []
        self.asked = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked += 1
                self.send_response(owner.status)
                self.send_header("Content-Length", str(len(owner.body)))
                self.end_headers()
                self.wfile.write(owner.body[: owner.cuts.pop(0)] if owner.cuts else owner.body)

            def log_message(self, *args: object) -> None:
                """Keep the test output clean."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/archive.bin"

    @property
    def published(self) -> Published:
        checksum = hashlib.md5(BODY).hexdigest()
        return Published(title="archive", url=self.url, algorithm="md5", checksum=checksum)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    one = Server()
    thread = threading.Thread(target=one.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.http.shutdown()
    thread.join()
    one.http.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_comes_whole_into_a_new_folder_and_only_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "archive.bin"
    for _ in range(2):
        fetch(server.published, path)
        assert path.read_bytes() == BODY
    assert names(path.parent) == ["archive.bin"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert server.asked == 1
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        fetch(server.published, path / "a")


def test_a_broken_connection_is_tried_again_and_a_damaged_file_replaced(server: Server, tmp_path: Path) -> None:
    server.cuts = [300_000, 0]
    (tmp_path / "a").write_bytes(BODY[:-1])
    fetch(server.published, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.asked == 3


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("cut", r"archive\.bin: .*1000 bytes read"),
        ("changed", r"archive\.bin sent another file .*wrong MD5"),
        ("missing", r"archive\.bin: 404 Not Found$"),
        ("offline", r"archive\.bin: .*refused$"),
    ],
)
def test_a_failed_download_is_one_line_and_leaves_nothing(
    server: Server, tmp_path: Path, case: str, message: str
) -> None:
    server.cuts = [1000] * 100 if case == "cut" else []
    server.body = BODY[:-1] + b"x" if case == "changed" else BODY
    server.status = 404 if case == "missing" else 200
    with socket.socket() as silent:
        if case == "offline":
            silent.bind(("127.0.0.1", 0))  # and does not listen
            server.url = f"http://127.0.0.1:{silent.getsockname()[1]}/archive.bin"
        with pytest.raises(UserError, match=message) as caught:
            fetch(server.published, tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("downloaded", [True, False])
def test_a_second_process_waits_for_the_first(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, downloaded: bool
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
    assert server.asked == (0 if downloaded else 1)
