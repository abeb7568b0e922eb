"""Files are written whole or not at all."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import IO

import pytest

from cifargan.errors import UserError
from cifargan.files import remove_partial_files, write_atomically, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, b"old")

    def write(file: IO[bytes]) -> None:
        file.write(b"ne")
        file.flush()
        assert path.read_bytes() == b"old"  # readers see the old file until the new one is whole
        file.write(b"w")

    write_atomically(path, write)
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_of_the_disk_leaves_the_old_file_and_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=f"could not write {path}: {os.strerror(code)}; .* untouched") as error:
        write_atomically(path, b"new")
    assert "\n" not in str(error.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_file_system_that_syncs_no_folders_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fail)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("raised", [KeyboardInterrupt, TypeError])
def test_any_other_interruption_leaves_no_trace_either(tmp_path: Path, raised: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file: IO[bytes]) -> None:
        file.write(b"half")
        raise raised

    with pytest.raises(raised):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="could not write") as error:
        write_atomically(tmp_path / "file" / "below", b"new")
    assert "\n" not in str(error.value)


def test_json_is_written_to_be_read(tmp_path: Path) -> None:
    write_json(tmp_path / "page.json", {"a": [1, None], "b": "é"})
    text = (tmp_path / "page.json").read_text()
    assert json.loads(text) == {"a": [1, None], "b": "é"}
    assert len(text.splitlines()) > 2


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".file.1.partial", ".file.2.partial", "file", ".hidden", "file.partial"):
        (tmp_path / name).write_bytes(b"x")
    remove_partial_files(tmp_path)
    assert names(tmp_path) == [".hidden", "file", "file.partial"]
    remove_partial_files(tmp_path / "nowhere")
