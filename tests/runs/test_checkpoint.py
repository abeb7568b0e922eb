"""Checkpoints: whole or not there, free of code, and every damaged one a single clear line."""

import io
import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cifargan.errors import UserError
from cifargan.runs.checkpoint import FORMAT, SEAL_BYTES, CheckpointStore, DamagedError, load

STATE = {"step": 7, "weights": {"a": torch.arange(6.0), "n": torch.tensor(3)}, "config": {"lr": 1e-3, "on": [1, "x"]}}


class Payload:
    """Makes a folder when it is unpickled without care."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the kernel refuse to write more than `size` bytes into any file, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# Writing


def test_a_full_disk_in_the_middle_of_a_checkpoint_keeps_the_ones_before(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(STATE, 1)
    with (
        largest_file(100_000),
        pytest.raises(UserError, match=r"could not write .*step_000000002\.pt: File too large; .* untouched") as error,
    ):
        store.save({"big": torch.zeros(100_000)}, 2)
    assert "\n" not in str(error.value)
    assert names(tmp_path) == ["step_000000001.pt"]
    assert load(store.find("last"))["step"] == 7
    assert store.save(STATE, 2).is_file()


# Reading


def test_a_state_survives(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save(STATE, 7)
    state = load(path)
    assert state.pop("format") == FORMAT
    assert torch.equal(state["weights"].pop("a"), torch.arange(6.0))
    assert torch.equal(state["weights"].pop("n"), torch.tensor(3))
    assert state == {"step": 7, "weights": {}, "config": STATE["config"]}


def test_loading_runs_no_code(tmp_path: Path) -> None:
    path, folder = tmp_path / "evil.pt", tmp_path / "code was here"
    torch.save({"format": FORMAT, "step": Payload(folder)}, path)
    with pytest.raises(UserError, match="is damaged or no checkpoint") as error:
        load(path)
    assert "\n" not in str(error.value)
    assert not folder.exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert folder.exists()


def whole() -> bytes:
    file = io.BytesIO()
    torch.save({"format": FORMAT, **STATE}, file)
    return file.getvalue()


def with_flipped_bytes() -> bytes:
    damaged = bytearray(whole())
    for i in range(len(damaged) // 3, len(damaged) // 3 + 200):
        damaged[i] ^= 0xFF
    return bytes(damaged)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(whole()[: len(whole()) // 2], id="half"),
        pytest.param(whole()[:-1], id="one byte short"),
        pytest.param(with_flipped_bytes(), id="flipped"),
        pytest.param(b"PK\x03\x04", id="a zip's first bytes"),
        pytest.param(b"\x80\x02", id="a pickle's first bytes"),
        pytest.param(b"<!DOCTYPE html><html>not found</html>\n", id="a web page"),
        pytest.param(bytes(10_000), id="zeros"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "step_000000007.pt"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=f"{path} is damaged or no checkpoint; there is no other") as error:
        load(path)
    assert "\n" not in str(error.value)


def test_random_bytes_are_always_one_line(tmp_path: Path) -> None:
    """Whatever the first bytes make of the rest: a number, a frame, a jump, a name."""
    path, chance = tmp_path / "step_000000007.pt", random.Random(0)
    for _ in range(400):
        prefix = chance.choice([b"", b"\x80\x02", b"\x80\x02}q\x00", b"\x80\x04\x95", b"(", b"cos\nsystem\n", b"]"])
        path.write_bytes(prefix + chance.randbytes(chance.randrange(40)))
        with pytest.raises(UserError, match="damaged or no checkpoint"):
            load(path)


def test_a_damaged_file_names_the_one_before(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in (10, 20):
        store.save(STATE, step)
    last = store.save(STATE, 30)
    last.write_bytes(b"")
    with pytest.raises(DamagedError, match=r"step_000000030\.pt is damaged.*; there is step_000000020\.pt beside it"):
        load(last)


def test_every_single_byte_is_covered_by_the_checksum(tmp_path: Path) -> None:
    """torch alone takes a flipped weight for a weight."""
    path = CheckpointStore(tmp_path).save(STATE, 7)
    content, chance = path.read_bytes(), random.Random(0)
    places = [0, len(content) // 2, len(content) - SEAL_BYTES - 1, len(content) - SEAL_BYTES, len(content) - 1]
    for place in [*places, *(chance.randrange(len(content)) for _ in range(100))]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=r"step_000000007\.pt is damaged") as error:
            load(path)
        assert "\n" not in str(error.value)
    for size in (0, 1, len(content) // 2, len(content) - SEAL_BYTES, len(content) - SEAL_BYTES // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(DamagedError, match=r"step_000000007\.pt is damaged"):
            load(path)
    path.write_bytes(content)
    assert load(path)["step"] == 7
    assert torch.load(path, weights_only=True)["step"] == 7  # anybody's tools read it, too


def test_the_newest_whole_one_is_used_and_each_that_is_not_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep=9)
    assert store.newest_whole() is None
    paths = [store.save({**STATE, "step": step}, step) for step in (10, 20, 30)]
    flipped = bytearray(paths[1].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    paths[1].write_bytes(flipped)
    paths[2].write_bytes(b"")
    found = store.newest_whole()
    assert found is not None
    assert (found[0], found[1]["step"]) == (paths[0], 10)
    first, second = (record.getMessage() for record in caplog.records)
    assert first == f"{paths[2]} is damaged or no checkpoint; there is step_000000020.pt beside it"
    assert second == f"{paths[1]} is damaged: its checksum does not fit its bytes; there is step_000000010.pt beside it"
    assert store.find("last") == paths[0]
    assert store.find("30") == paths[2]  # what is asked for by its number is not replaced silently
    paths[0].write_bytes(b"")
    assert store.newest_whole() is None


def test_what_a_sudden_end_left_behind_is_cleared_up(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=9)
    paths = [store.save({**STATE, "step": step, "best": {"step": 20}}, step) for step in (10, 20, 30)]
    (tmp_path / ".step_000000040.pt.99.partial").write_bytes(b"half")
    paths[2].write_bytes(b"")
    store.mend(paths[1], load(paths[1]))
    assert names(tmp_path) == ["best.pt", "step_000000010.pt", "step_000000020.pt", "step_000000030.damaged"]
    assert load(store.find("best"))["step"] == 20
    # A best one of another step is left alone.
    store.mend(paths[0], load(paths[0]))
    assert load(store.find("best"))["step"] == 20


def test_a_damaged_one_ahead_does_not_count_as_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    (tmp_path / "step_000000090.pt").write_bytes(b"")
    for step in (10, 20, 30):
        store.save(STATE, step)
    assert names(tmp_path) == ["step_000000020.pt", "step_000000030.pt", "step_000000090.pt"]


def test_torch_files_of_others_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    for content in ({"weight": torch.zeros(2)}, [1, 2], torch.zeros(3)):
        torch.save(content, path)
        with pytest.raises(UserError, match="is a torch file, but no cifargan checkpoint") as error:
            load(path)
        assert "\n" not in str(error.value)


def test_a_format_from_the_future_is_named(tmp_path: Path) -> None:
    path = tmp_path / "new.pt"
    torch.save({"format": FORMAT + 1}, path)
    message = f"has checkpoint format {FORMAT + 1}; this version reads format {FORMAT}"
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_what_is_not_there_and_what_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint at"):
        load(tmp_path / "none.pt")
    with pytest.raises(UserError, match="is damaged or no checkpoint"):
        load(tmp_path)


# Keeping and finding


def test_the_newest_are_kept_and_the_best_beside_them(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    assert store.steps() == []
    for step, best in ((5, False), (10, True), (15, False), (100, True), (105, False), (110, False), (115, False)):
        store.save({"step": step}, step, best=best)
    assert names(store.directory) == ["best.pt", "step_000000110.pt", "step_000000115.pt"]
    assert load(store.find("best"))["step"] == 100
    assert load(store.find("last"))["step"] == 115
    assert load(store.find("110"))["step"] == 110


def test_what_cannot_be_found_is_told_with_what_there_is(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for which in ("last", "best", "5"):
        with pytest.raises(UserError, match=f"no checkpoint '{which}' in .*: the run has not written any yet"):
            store.find(which)
    store.save(STATE, 5)
    store.save(STATE, 10)
    with pytest.raises(UserError, match=r"no checkpoint '7' in .*: there are 5, 10$"):
        store.find("7")
    with pytest.raises(UserError, match=r"no checkpoint 'best' in .*: there are 5, 10$"):
        store.find("best")
    store.save(STATE, 15, best=True)
    for which in ("first", "", "²", "../step_000000010"):
        with pytest.raises(UserError, match=r"there are 10, 15, best$") as error:
            store.find(which)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [0, -1, "3", [3], None, torch.tensor(3)])
def test_a_format_that_is_none_is_one_line(tmp_path: Path, kind: object) -> None:
    torch.save({"format": kind}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match="has checkpoint format") as error:
        load(tmp_path / "odd.pt")
    assert "\n" not in str(error.value)
