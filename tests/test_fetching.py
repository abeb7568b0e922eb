"""Downloads from a server on this machine that breaks off, forgets, and lies."""

import errno
import hashlib
import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cifargan import fetching
from cifargan.errors import UserError
from cifargan.fetching import Published, fetch, partial_path

BODY = bytes(range(256)) * 5000  # 1.28 MB


class Server:
    """Serves one body at any path.

    Attributes:
        ranges: whether it can begin in the middle.
        cuts: for each coming reply, after how many bytes it hangs up; replies after those are whole.
    """

    def __init__(self) -> None:
        self.body = BODY
        self.ranges = True
        self.cuts: list[int] = []
        self.asked: list[str | None] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                owner.asked.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and owner.ranges else 0
                if start >= len(owner.body):
                    self.send_error(416)
                    return
                rest = owner.body[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(rest)))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(owner.body) - 1}/{len(owner.body)}")
                self.end_headers()
                self.wfile.write(rest[: owner.cuts.pop(0)] if owner.cuts else rest)

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
    monkeypatch.setattr(fetching, "PAUSE", 0.0)
    one = Server()
    thread = threading.Thread(target=one.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.http.shutdown()
    thread.join()
    one.http.server_close()


def test_a_file_comes_whole_into_a_new_folder(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "archive.bin"
    fetch(server.published, path)
    assert path.read_bytes() == BODY
    assert [file.name for file in path.parent.iterdir()] == ["archive.bin"]


def test_cut_connections_are_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.cuts = [300_000, 400_000]
    fetch(server.published, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.asked == [None, "bytes=300000-", "bytes=700000-"]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server: Server, tmp_path: Path) -> None:
    server.cuts = [200_000, 0]
    with pytest.raises(UserError, match=r"broke off; 0\.2 MB are kept in .*a\.part and gone on with"):
        fetch(server.published, tmp_path / "a")
    assert partial_path(tmp_path / "a").read_bytes() == BODY[:200_000]
    fetch(server.published, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.asked[-1] == "bytes=200000-"


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [300_000]
    fetch(server.published, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.asked == [None, "bytes=300000-"]


def test_a_server_that_always_breaks_off_is_given_up(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [1000] * 100
    with pytest.raises(UserError, match="the connection broke off"):
        fetch(server.published, tmp_path / "a")
    assert len(server.asked) == 2


def test_another_file_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    server.body = BODY[:-1] + b"x"
    with pytest.raises(UserError, match=r"not the published file \(wrong MD5\)"):
        fetch(server.published, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [BODY, BODY + b"more"])
def test_what_was_left_may_be_whole_or_too_long(server: Server, tmp_path: Path, left: bytes) -> None:
    partial_path(tmp_path / "a").write_bytes(left)
    fetch(server.published, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_wrong_beginning_is_noticed(server: Server, tmp_path: Path) -> None:
    partial_path(tmp_path / "a").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="wrong MD5"):
        fetch(server.published, tmp_path / "a")
    fetch(server.published, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY


def test_no_space_is_told_before_anything_is_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(OSError, match="1 MB are to come and 0 MB are free") as caught:
        fetch(server.published, tmp_path / "a")
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "a").exists()


def test_a_disk_that_fills_up_keeps_what_it_has(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BufferedWriter):
        def write(self, data: Any) -> int:
            if partial_path(tmp_path / "a").stat().st_size > 500_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = super().write(data)
            self.flush()
            return written

    opened = Path.open

    def open_full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return Full(io.FileIO(path, "a")) if mode == "ab" else opened(path, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_full)
        with pytest.raises(OSError, match="No space left"):
            fetch(server.published, tmp_path / "a")
    kept = partial_path(tmp_path / "a").stat().st_size
    assert kept > 500_000
    fetch(server.published, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.asked[-1] == f"bytes={kept}-"


@pytest.mark.parametrize("brought", [True, False])
def test_who_comes_second_waits_for_the_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought: bool
) -> None:
    path, waiting = tmp_path / "a", threading.Event()

    def wait(seconds: float) -> None:
        waiting.set()

    monkeypatch.setattr("time.sleep", wait)
    second = threading.Thread(target=fetch, args=(server.published, path))
    with fetching._alone(partial_path(path)) as file:
        second.start()
        assert waiting.wait(60)
        file.write(BODY if brought else BODY[:1000])
        file.flush()
        if brought:
            partial_path(path).replace(path)
    second.join(60)
    assert path.read_bytes() == BODY
    assert server.asked == ([] if brought else ["bytes=1000-"])
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_nothing_is_left_of_a_download_that_brought_nothing(server: Server, tmp_path: Path) -> None:
    server.body = b""
    with pytest.raises(UserError, match="416"):
        fetch(server.published, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
